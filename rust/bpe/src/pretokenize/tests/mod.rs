mod bitmask;
mod named;
pub(crate) mod oracle;
