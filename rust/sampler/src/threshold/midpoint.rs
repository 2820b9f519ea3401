//! The bisection step of the threshold search.

/// Returns a float strictly between `low` and `high`, or `None` if there is none.
///
/// `by_value` halves the interval of values. Otherwise the step halves the number of floats in it, which ends any
/// bisection within 32 steps.
pub(super) fn midpoint(low: f32, high: f32, by_value: bool) -> Option<f32> {
    if by_value {
        let middle = (f64::midpoint(f64::from(low), f64::from(high))) as f32;
        if low < middle && middle < high {
            return Some(middle);
        }
    }
    let middle = from_order(i32::midpoint(to_order(low), to_order(high)));
    (low < middle && middle < high).then_some(middle)
}

/// Maps floats to integers of the same order, adjacent floats to adjacent integers.
fn to_order(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The inverse of [`to_order`].
fn from_order(order: i32) -> f32 {
    f32::from_bits((order ^ ((order >> 31) as u32 >> 1) as i32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_monotonic_and_invertible() {
        let values = [f32::MIN, -1.0, -f32::MIN_POSITIVE, -0.0, 0.0, 1e-45, 1.0, f32::MAX];
        for pair in values.windows(2) {
            assert!(to_order(pair[0]) < to_order(pair[1]));
        }
        for value in values {
            assert_eq!(from_order(to_order(value)).to_bits(), value.to_bits());
        }
    }

    #[test]
    fn bisection_ends_for_any_bracket() {
        for (low, high) in [(f32::MIN, f32::MAX), (-0.0, 1.0), (-1.0, 0.0), (1.0, 1.0f32.next_up()), (-1e-45, 1e-45)] {
            for up in [false, true] {
                let (mut low, mut high) = (low, high);
                let mut round = 0;
                while let Some(middle) = midpoint(low, high, round % 3 < 2) {
                    *(if up { &mut low } else { &mut high }) = middle;
                    round += 1;
                    assert!(round < 120, "{low} {high}");
                }
            }
        }
    }
}
