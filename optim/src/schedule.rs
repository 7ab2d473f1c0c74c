//! Learning rate schedules, step for step those of transformers' `get_scheduler`.

/// The shape of a schedule after its warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScheduleKind {
    /// Falls in a straight line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
    /// Stays (with a warm-up: transformers' `constant_with_warmup`).
    Constant,
    /// Stays, then falls along half a cosine to 0 in the last `decay` steps.
    WarmupStableDecay {
        /// Steps of the fall: `num_decay_steps` of transformers.
        decay: usize,
    },
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// Steps of a rise in a straight line from 0.
    pub warmup: usize,
    /// Optimiser steps of the whole run.
    pub total: usize,
}

impl Schedule {
    /// The rate of the update that follows `done` finished steps. The first update of a warm-up has rate 0, as it has
    /// in transformers.
    #[must_use]
    pub fn rate(&self, done: usize) -> f64 {
        self.peak * self.factor(done)
    }

    fn factor(&self, done: usize) -> f64 {
        let Schedule { kind, warmup, total, .. } = *self;
        if done < warmup {
            return done as f64 / warmup as f64;
        }
        match kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress(done, warmup, total),
            ScheduleKind::Cosine => half_cosine(progress(done, warmup, total)),
            ScheduleKind::WarmupStableDecay { decay } => {
                let start = total.saturating_sub(decay).max(warmup);
                if done < start { 1.0 } else { half_cosine(progress(done, start, start + decay)) }
            }
        }
    }
}

/// How much of the way from `start` to `end` is done: 0 to 1.
fn progress(done: usize, start: usize, end: usize) -> f64 {
    let whole = end.saturating_sub(start).max(1);
    ((done - start) as f64 / whole as f64).min(1.0)
}

/// From 1 at 0 to 0 at 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind, warmup: usize, total: usize) -> Vec<f64> {
        let schedule = Schedule { kind, peak: 1.0, warmup, total };
        (0..=total + 1).map(|done| schedule.rate(done)).collect()
    }

    #[test]
    fn warms_up_from_zero_and_falls_to_zero() {
        assert_eq!(rates(ScheduleKind::Linear, 2, 6), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        assert_eq!(rates(ScheduleKind::Constant, 2, 3), [0.0, 0.5, 1.0, 1.0, 1.0]);
        let cosine = rates(ScheduleKind::Cosine, 0, 4);
        assert_eq!((cosine[0], cosine[4], cosine[5]), (1.0, 0.0, 0.0));
        assert!((cosine[1] - 0.853_553_390_593_273_8).abs() < 1e-15 && (cosine[2] - 0.5).abs() < 1e-15);
    }

    #[test]
    fn stable_until_the_decay() {
        let rates = rates(ScheduleKind::WarmupStableDecay { decay: 4 }, 1, 8);
        assert_eq!(rates[..5], [0.0, 1.0, 1.0, 1.0, 1.0]);
        assert!((rates[6] - 0.5).abs() < 1e-15);
        assert_eq!(rates[8], 0.0);
    }

    #[test]
    fn a_warmup_longer_than_the_run_only_rises() {
        assert_eq!(rates(ScheduleKind::Linear, 10, 2), [0.0, 0.1, 0.2, 0.3]);
    }
}
