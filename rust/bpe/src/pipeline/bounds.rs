//! Bounds of the components of a file. Forty steps that double a text would take all memory.

use crate::Result;

/// The most steps of one component.
const MOST_STEPS: usize = 1000;

/// The most bytes of the JSON of one component. The longest known, SentencePiece's rules for characters, has 330,000.
const MOST_BYTES: usize = 4 << 20;

/// The most items of a template.
const MOST_ITEMS: usize = 4096;

/// The most bytes that a component makes of one byte. Unicode's normal forms make at most 11 of 3.
const MOST_GROWTH: usize = 64;

/// Refuses a component of too much JSON, before it becomes values of thirty times its size.
///
/// # Errors
/// [`crate::Error::Format`] naming the component.
pub(super) fn check_length(component: &str, length: usize) -> Result<()> {
    if length > MOST_BYTES {
        return Err(malformed!("tokenizer.json: {component} has {length} bytes; expected at most {MOST_BYTES}"));
    }
    Ok(())
}

/// Refuses a component of too many steps, sequences included.
///
/// # Errors
/// [`crate::Error::Format`] naming the component.
pub(super) fn check_steps(component: &str, steps: usize) -> Result<()> {
    if steps > MOST_STEPS {
        return Err(malformed!("tokenizer.json: {component} has {steps} steps; expected at most {MOST_STEPS}"));
    }
    Ok(())
}

/// Refuses a template of too many items.
///
/// # Errors
/// [`crate::Error::Format`] naming the field.
pub(super) fn check_items(field: &str, items: usize) -> Result<()> {
    if items > MOST_ITEMS {
        return Err(malformed!("tokenizer.json: {field} has {items} items or more; expected at most {MOST_ITEMS}"));
    }
    Ok(())
}

/// The most bytes that a component may make of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    component: &'static str,
    length: usize,
}

impl Growth {
    /// Returns the bound for a text of `length` bytes.
    pub(crate) fn new(component: &'static str, length: usize) -> Self {
        Self { component, length }
    }

    /// Refuses too long a result.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] naming the component.
    pub(crate) fn check(self, length: usize) -> Result<()> {
        // Short texts may grow more: a prefix is put before them.
        if length > (self.length + 64).saturating_mul(MOST_GROWTH) {
            return Err(invalid!(
                "the {} of this tokenizer makes {length} bytes or more of {}; expected at most {MOST_GROWTH} of each",
                self.component,
                self.length
            ));
        }
        Ok(())
    }
}
