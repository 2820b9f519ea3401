//! A guess at where the cut lies, from a sample of the row, so that one pass usually settles it.
//!
//! Nothing here decides anything: a wrong guess costs time and is found out. The mass *below* a threshold is estimated, not
//! that above: no single weight below is large, so a small sample speaks for all of them, however peaked the row.

use super::kernels::{LANES, below, rough};
use super::select::{FEW, Goal};
use bpe_llama_simd::Backend;

/// Rows shorter than this are searched directly.
const SHORTEST: usize = 4096;
/// Sampled runs of sixteen neighbouring ids, spread evenly.
const RUNS: usize = 128;
/// Halvings of the range of thresholds.
const STEPS: u32 = 10;
/// The least share of a bracket that [`narrow`] cuts off.
const LEAST_STEP: f64 = 1.0 / 8.0;
/// Standard deviations between the estimate and either end of the bracket.
const MARGIN: f32 = 4.0;

/// Members of the sample that must lie above the bracket's lower end.
const LAST_FEW: f32 = 6.0;

/// A sample of a row, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    logits: Vec<f32>,
    weights: Vec<f32>,
    scale: f32,
}

impl Sample {
    /// Draws the sample; returns whether the row is long enough to need one.
    pub(crate) fn draw(&mut self, row: &[f32], weights: &[f32]) -> bool {
        if row.len() < SHORTEST {
            return false;
        }
        self.logits.clear();
        self.weights.clear();
        let stride = row.len() / RUNS;
        for run in 0..RUNS {
            let ids = run * stride..run * stride + LANES;
            self.logits.extend_from_slice(&row[ids.clone()]);
            self.weights.extend_from_slice(&weights[ids]);
        }
        self.scale = row.len() as f32 / self.logits.len() as f32;
        true
    }
}

/// Returns a bracket of thresholds around the cut, narrowed until few logits are inside by sums so rough that one pass must
/// confirm it: for rows too short to sample.
///
/// `whole` is as for [`guess`].
pub(crate) fn narrow(
    backend: Backend,
    row: &[f32],
    weights: &[f32],
    goal: Goal,
    whole: f64,
    (lowest, highest): (f32, f32),
) -> (f32, f32) {
    let (wanted, counting) = match goal {
        Goal::Count(count) => (count as f64, true),
        Goal::Mass(mass) => (mass, false),
    };
    // Each end with the count, and the count or mass sought for, of what is at least as high.
    let (mut low, mut high) = ((lowest, row.len(), whole), (highest.next_up(), 0, 0.0));
    // Half-way first, as nothing is known of a row's shape.
    let mut share: f64 = 0.5;
    for _ in 0..STEPS {
        if low.1 - high.1 <= FEW {
            break;
        }
        // Twice as far from the nearer end as the cut seems to be: the next threshold likely leaves it between the two.
        let aside = (2.0 * share.min(1.0 - share)).clamp(LEAST_STEP, 0.5);
        let fraction = if share < 0.5 { aside } else { 1.0 - aside };
        let threshold = (f64::from(high.0) - fraction * (f64::from(high.0) - f64::from(low.0))) as f32;
        if !(low.0 < threshold && threshold < high.0) {
            break;
        }
        let (count, mass) = rough(backend, row, weights, threshold);
        let found = if counting { count as f64 } else { f64::from(mass) };
        *(if found >= wanted { &mut low } else { &mut high }) = (threshold, count, found);
        // Were the bracket evenly filled, the cut would lie this far from its upper end.
        share = (wanted - high.2) / (low.2 - high.2);
    }
    (low.0, high.0)
}

/// Returns a bracket of thresholds that likely holds the cut.
///
/// `whole` is the mass, or the count, of the row from `lowest` to `highest`.
pub(crate) fn guess(
    backend: Backend,
    sample: &Sample,
    goal: Goal,
    whole: f64,
    (lowest, highest): (f32, f32),
) -> (f32, f32) {
    let counting = matches!(goal, Goal::Count(_));
    let goal = match goal {
        Goal::Count(count) => count as f64,
        Goal::Mass(mass) => mass,
    };
    let rest = (whole - goal) as f32 / sample.scale;
    let size = sample.logits.len() as f32;
    // How far what lies below a threshold exceeds what is to be left out, how far off that may be, and the sample above.
    let judge = |threshold: f32| {
        let (sum, squares, count) = below(backend, &sample.logits, &sample.weights, threshold);
        if counting {
            // The fewer lie on one side the surer that side's count: take the smaller.
            (count - rest, MARGIN * (count.min(size - count) + 4.0).sqrt(), size - count)
        } else {
            (sum - rest, MARGIN * squares.sqrt(), size - count)
        }
    };
    let search = |stays_below: &dyn Fn((f32, f32, f32)) -> bool| {
        let (mut low, mut high) = (f64::from(lowest), f64::from(highest));
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            *(if stays_below(judge(middle as f32)) { &mut low } else { &mut high }) = middle;
        }
        (low as f32, high as f32)
    };
    // The highest threshold below which surely too little lies, and the lowest below which surely enough does. Above the
    // last few of the sample nothing is known.
    let (low, _) = search(&|(excess, doubt, above)| excess + doubt <= 0.0 && above >= LAST_FEW);
    let (_, high) = search(&|(excess, doubt, _)| excess - doubt < 0.0);
    (low, if high < highest { high } else { f32::INFINITY })
}
