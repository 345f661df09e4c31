//! Rounds, their middle and their spread, and ratios that are only printed when the rounds agree.
//!
//! In: one figure per round. Out: medians with minimum and maximum; ratios. Kept true: a ratio is taken within each round, so that
//! what disturbed the machine in a round disturbs both sides of it. Not here: where figures come from.

use std::fmt;

/// A ratio whose rounds differ by more than this part of its median says nothing.
pub const WIDEST: f64 = 0.5;

/// One figure over several rounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle one; of an even number the mean of both. NaN without rounds.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.as_slice() {
            [] => f64::NAN,
            all if all.len() % 2 == 1 => all[middle],
            all => f64::midpoint(all[middle - 1], all[middle]),
        }
    }

    /// The smallest.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Distance of the extremes as part of the median.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.max() - self.min()) / self.median()
    }

    /// This over `other`, round by round.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// As a ratio: its median if its rounds agree.
    #[must_use]
    pub fn trusted(&self) -> Option<f64> {
        (self.median().is_finite() && self.spread() <= WIDEST).then(|| self.median())
    }
}

/// Median and, in brackets, minimum and maximum.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median() < 10.0 { 2 } else { usize::from(self.median() < 100.0) };
        write!(f, "{:.digits$}", self.median())?;
        if self.0.len() > 1 {
            write!(f, " ({:.digits$}–{:.digits$})", self.min(), self.max())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn ratios_are_taken_round_by_round_and_refused_when_rounds_disagree() {
        let (ours, theirs) = (Series(vec![20.0, 40.0, 21.0]), Series(vec![60.0, 120.0, 60.0]));
        let ratio = ours.over(&theirs);
        assert_eq!(format!("{ratio}"), "0.33 (0.33–0.35)");
        assert!(ratio.trusted().is_some(), "the slow round was slow for both");
        assert!(Series(vec![1.0, 2.0, 1.0]).trusted().is_none());
        assert!(Series::default().trusted().is_none());
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let cases = [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 3.0], 2.5), (vec![7.0], 7.0)];
        for (rounds, want) in cases {
            assert!((Series(rounds).median() - want).abs() < 1e-9);
        }
    }
}
