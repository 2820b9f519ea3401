//! Element-wise parts of a layer in training, forward and backward, in float32: each reads and writes memory once, where a
//! tensor library takes a pass for each operation.
//!
//! Up to `threads` threads take part, `PyTorch`'s if it has as many; results do not depend on them, and every backend gives the
//! same bits.

use crate::norm::{NormWeights, Statistics, write_normalized};
use crate::{Error, Result, openmp, thread_pool};
use bpe_llama_simd::exp::Scale;
use bpe_llama_simd::{Backend, Kind};
use rows::{cross_entropy_row, norm_row_backward, rotate_head, sigmoid};
use std::sync::{Mutex, PoisonError};

mod rows;
#[cfg(test)]
mod tests;

pub use rows::Loss;

/// Elements of a part: some microseconds of work, more than it takes to hand them to a thread.
const PART: usize = if cfg!(test) { 1 << 12 } else { 1 << 14 };

/// The angles of [`ElementWise::rotate`]: cosines and sines of P rows, `(P, R / 2)` each. Row `m` of the input has those of row `m % P`.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// The cosines.
    pub cos: &'a [f32],
    /// The sines.
    pub sin: &'a [f32],
    /// R / 2.
    pub pairs: usize,
}

/// The functions, and what computes them.
#[derive(Debug, Clone, Copy)]
pub struct ElementWise {
    backend: Backend,
    threads: usize,
}

impl ElementWise {
    /// Returns the functions on the fastest instructions and up to so many threads.
    pub fn new(threads: usize) -> Self {
        Self { backend: Backend::best(), threads }
    }

    /// Normalizes M rows of D elements: `out = x * scale * weights` with `scale = 1 / sqrt(mean(x^2) + eps)`.
    ///
    /// # Arguments
    /// `scales`, one a row, are written for [`Self::rms_norm_backward`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths do not fit, or there are no weights.
    ///
    /// # Source
    /// Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    pub fn rms_norm(self, x: &[f32], weights: &[f32], eps: f32, out: &mut [f32], scales: &mut [f32]) -> Result<()> {
        let width = width_of(weights)?;
        same_lengths(scales.len() * width, &[("x", x.len()), ("out", out.len())])?;
        let rows = rows_of_part(width);
        let parts = x.chunks(rows * width).zip(out.chunks_mut(rows * width)).zip(scales.chunks_mut(rows));
        self.run(parts.map(|((x, out), scales)| Part::Norm { x, weights, eps, out, scales }));
        Ok(())
    }

    /// Writes the gradients of [`Self::rms_norm`] with respect to `x` and to the weights, which is a sum over rows.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths do not fit, or there are no weights.
    pub fn rms_norm_backward(
        self,
        gradient: &[f32],
        x: &[f32],
        weights: &[f32],
        scales: &[f32],
        for_x: &mut [f32],
        for_weights: &mut [f32],
    ) -> Result<()> {
        let width = width_of(weights)?;
        let lengths = [("the gradient", gradient.len()), ("x", x.len()), ("for_x", for_x.len())];
        same_lengths(scales.len() * width, &lengths)?;
        same_lengths(width, &[("for_weights", for_weights.len())])?;
        let rows = rows_of_part(width);
        let mut sums = vec![0.0; scales.len().div_ceil(rows) * width];
        let inputs = gradient.chunks(rows * width).zip(x.chunks(rows * width)).zip(scales.chunks(rows));
        let outputs = for_x.chunks_mut(rows * width).zip(sums.chunks_mut(width));
        self.run(inputs.zip(outputs).map(|(((gradient, x), scales), (for_x, for_weights))| Part::NormBackward {
            gradient,
            x,
            weights,
            scales,
            for_x,
            for_weights,
        }));
        for_weights.fill(0.0);
        for sums in sums.chunks(width) {
            for (total, sum) in for_weights.iter_mut().zip(sums) {
                *total += sum;
            }
        }
        Ok(())
    }

    /// Writes `gate * sigmoid(gate) * up`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths differ.
    ///
    /// # Source
    /// Shazeer 2020, arXiv:2002.05202, eq. 6.
    pub fn swiglu(self, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<()> {
        same_lengths(gate.len(), &[("up", up.len()), ("out", out.len())])?;
        let parts = gate.chunks(PART).zip(up.chunks(PART)).zip(out.chunks_mut(PART));
        self.run(parts.map(|((gate, up), out)| Part::Swiglu { gate, up, out }));
        Ok(())
    }

    /// Writes the gradients of [`Self::swiglu`] with respect to `gate` and `up`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths differ.
    pub fn swiglu_backward(
        self,
        gradient: &[f32],
        gate: &[f32],
        up: &[f32],
        for_gate: &mut [f32],
        for_up: &mut [f32],
    ) -> Result<()> {
        let inputs = [("gate", gate.len()), ("up", up.len())];
        let outputs = [("for_gate", for_gate.len()), ("for_up", for_up.len())];
        same_lengths(gradient.len(), &[inputs, outputs].concat())?;
        let inputs = gradient.chunks(PART).zip(gate.chunks(PART)).zip(up.chunks(PART));
        let outputs = for_gate.chunks_mut(PART).zip(for_up.chunks_mut(PART));
        self.run(inputs.zip(outputs).map(|(((gradient, gate), up), (for_gate, for_up))| Part::SwigluBackward {
            gradient,
            gate,
            up,
            for_gate,
            for_up,
        }));
        Ok(())
    }

    /// Rotates features `i` and `i + R / 2` of each head by the angles of its row (`RoPE`), or back; features from `R` on are
    /// copied.
    ///
    /// # Arguments
    /// `x` and `out` are M rows of `heads * head_dim` elements. `back` is the gradient of the rotation, too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if shapes do not fit.
    ///
    /// # Source
    /// Su et al. 2021, arXiv:2104.09864, eq. 34.
    pub fn rotate(
        self,
        x: &[f32],
        angles: Angles<'_>,
        heads: usize,
        head_dim: usize,
        back: bool,
        out: &mut [f32],
    ) -> Result<()> {
        same_lengths(x.len(), &[("out", out.len())])?;
        let width = heads.saturating_mul(head_dim);
        let (rows, periods) = (x.len() / width.max(1), angles.cos.len() / angles.pairs.max(1));
        let fits = width > 0
            && rows * width == x.len()
            && 0 < angles.pairs
            && 2 * angles.pairs <= head_dim
            && angles.cos.len() == angles.sin.len()
            && periods * angles.pairs == angles.cos.len()
            && (rows == 0 || (periods > 0 && rows.is_multiple_of(periods)));
        if !fits {
            return Err(Error::InvalidArgument(format!(
                "{} elements in rows of {heads} heads of {head_dim}, and angles of {} and {} elements in rows of {}; expected \
                 whole rows, as many as the angles or a multiple",
                x.len(),
                angles.cos.len(),
                angles.sin.len(),
                angles.pairs
            )));
        }
        let rows = rows_of_part(width);
        let parts = x.chunks(rows * width).zip(out.chunks_mut(rows * width)).enumerate();
        self.run(parts.map(|(part, (x, out))| Part::Rotate {
            x,
            out,
            first: part * rows,
            angles,
            width,
            head_dim,
            back,
        }));
        Ok(())
    }

    /// Writes the cross-entropy of each row of logits times the row's factor to `losses`. With `loss.gradient` the logits are
    /// overwritten by the gradient of the sum of all of them.
    ///
    /// # Arguments
    /// `logits` are `(M, V)`; `labels`, `factors` and `losses` have M elements. A row whose factor is 0 has the loss and the
    /// gradient 0, whatever its label is. A row with a logit that is NaN or +infinity, or without a finite one, has the loss and
    /// the gradient NaN.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths do not fit, or a label is no class and its factor is neither 0 nor NaN.
    ///
    /// # Source
    /// Szegedy et al. 2016, arXiv:1512.00567, section 7 (label smoothing); Chowdhery et al. 2022, arXiv:2204.02311, section 5
    /// (z-loss).
    pub fn cross_entropy(
        self,
        logits: &mut [f32],
        labels: &[i64],
        factors: &[f32],
        loss: Loss,
        losses: &mut [f32],
    ) -> Result<()> {
        let rows = labels.len();
        same_lengths(rows, &[("factors", factors.len()), ("losses", losses.len())])?;
        let classes = logits.len() / rows.max(1);
        same_lengths(rows * classes, &[("logits", logits.len())])?;
        let is_class = |label: i64| usize::try_from(label).is_ok_and(|label| label < classes);
        let wrong = |(label, factor): &(&i64, &f32)| **factor != 0.0 && !factor.is_nan() && !is_class(**label);
        if let Some((label, _)) = labels.iter().zip(factors).find(wrong) {
            return Err(Error::InvalidArgument(format!("label {label} is not one of {classes} classes")));
        }
        let rows = (PART / classes.max(1)).max(1);
        let inputs = labels.chunks(rows).zip(factors.chunks(rows));
        let outputs = logits.chunks_mut((rows * classes).max(1)).zip(losses.chunks_mut(rows));
        self.run(inputs.zip(outputs).map(|((labels, factors), (logits, losses))| Part::CrossEntropy {
            logits,
            labels,
            factors,
            loss,
            losses,
        }));
        Ok(())
    }

    fn run<'a>(self, parts: impl ExactSizeIterator<Item = Part<'a>> + Send) {
        let several = parts.len() > 1;
        let parts = Mutex::new(parts);
        let job = || {
            loop {
                let Some(part) = parts.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
                match self.backend.kind() {
                    Kind::Portable => compute(part),
                    #[cfg(target_arch = "aarch64")]
                    Kind::Neon => compute(part),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a `Backend` exists only if the CPU has it.
                    Kind::Avx2 => unsafe { compute_avx2(part) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Kind::Avx512 => unsafe { compute_avx512(part) },
                }
            }
        };
        if !several || self.threads == 1 {
            job();
        } else if !openmp::run(self.threads, &job) {
            thread_pool::run(self.threads, &job);
        }
    }
}

fn same_lengths(expected: usize, lengths: &[(&str, usize)]) -> Result<()> {
    match lengths.iter().find(|(_, length)| *length != expected) {
        None => Ok(()),
        Some((name, length)) => {
            Err(Error::InvalidArgument(format!("{name} has {length} elements; expected {expected}")))
        }
    }
}

fn width_of(weights: &[f32]) -> Result<usize> {
    if weights.is_empty() {
        return Err(Error::InvalidArgument("0 weights; expected at least 1".into()));
    }
    Ok(weights.len())
}

fn rows_of_part(width: usize) -> usize {
    (PART / width).max(16)
}

/// What one thread computes at a time.
enum Part<'a> {
    Norm {
        x: &'a [f32],
        weights: &'a [f32],
        eps: f32,
        out: &'a mut [f32],
        scales: &'a mut [f32],
    },
    NormBackward {
        gradient: &'a [f32],
        x: &'a [f32],
        weights: &'a [f32],
        scales: &'a [f32],
        for_x: &'a mut [f32],
        for_weights: &'a mut [f32],
    },
    Swiglu {
        gate: &'a [f32],
        up: &'a [f32],
        out: &'a mut [f32],
    },
    SwigluBackward {
        gradient: &'a [f32],
        gate: &'a [f32],
        up: &'a [f32],
        for_gate: &'a mut [f32],
        for_up: &'a mut [f32],
    },
    CrossEntropy {
        logits: &'a mut [f32],
        labels: &'a [i64],
        factors: &'a [f32],
        loss: Loss,
        losses: &'a mut [f32],
    },
    Rotate {
        x: &'a [f32],
        out: &'a mut [f32],
        first: usize,
        angles: Angles<'a>,
        width: usize,
        head_dim: usize,
        back: bool,
    },
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn compute_avx2(part: Part<'_>) {
    compute(part);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn compute_avx512(part: Part<'_>) {
    compute(part);
}

#[inline(always)]
fn compute(part: Part<'_>) {
    match part {
        Part::Norm { x, weights, eps, out, scales } => {
            let width = weights.len();
            for ((x, out), scale) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(scales) {
                let statistics = Statistics::of(x, NormWeights::F32(weights), eps);
                *scale = statistics.scale;
                write_normalized(x.iter().copied().zip(out), statistics, NormWeights::F32(weights));
            }
        }
        Part::NormBackward { gradient, x, weights, scales, for_x, for_weights } => {
            let width = weights.len();
            let rows = gradient.chunks_exact(width).zip(x.chunks_exact(width)).zip(for_x.chunks_exact_mut(width));
            for (((gradient, x), for_x), scale) in rows.zip(scales) {
                norm_row_backward(gradient, x, weights, *scale, for_x, for_weights);
            }
        }
        Part::Swiglu { gate, up, out } => {
            let exp = Scale::new(0.0, 1.0);
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                *out = gate * sigmoid(exp, *gate) * up;
            }
        }
        Part::SwigluBackward { gradient, gate, up, for_gate, for_up } => {
            let exp = Scale::new(0.0, 1.0);
            let outputs = for_gate.iter_mut().zip(for_up);
            for (((gradient, gate), up), (for_gate, for_up)) in gradient.iter().zip(gate).zip(up).zip(outputs) {
                let sigmoid = sigmoid(exp, *gate);
                *for_up = gradient * (gate * sigmoid);
                *for_gate = gradient * up * sigmoid * gate.mul_add(1.0 - sigmoid, 1.0);
            }
        }
        Part::CrossEntropy { logits, labels, factors, loss, losses } => {
            let rows = logits.chunks_exact_mut(logits.len() / labels.len()).zip(losses);
            for ((label, factor), (logits, out)) in labels.iter().zip(factors).zip(rows) {
                let label = usize::try_from(*label).ok().filter(|label| *label < logits.len());
                *out = cross_entropy_row(logits, label.unwrap_or(0), *factor, loss);
            }
        }
        Part::Rotate { x, out, first, angles: Angles { cos, sin, pairs }, width, head_dim, back } => {
            let rows = cos.len() / pairs;
            for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
                let at = (first + row) % rows * pairs;
                let (cos, sin) = (&cos[at..at + pairs], &sin[at..at + pairs]);
                for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                    if back {
                        rotate_head(x, cos, sin, out, |sin| -sin);
                    } else {
                        rotate_head(x, cos, sin, out, |sin| sin);
                    }
                }
            }
        }
    }
}
