//! The threads of a pool as a team that shares loops. Its members stay awake for a moment after a loop: a step has thousands of
//! loops of some tens of microseconds each, and waking a thread takes as long as many of them.
//!
//! Each thread has a seat and first takes the tasks of its own part of the range, from the front; so what a thread has written in one
//! loop, it tends to read in the next. With none left it takes tasks off the back of the others' parts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a member waits for the next loop before its thread goes back to the pool.
const LINGER: Duration = Duration::from_micros(200);
/// How long a member keeps a thread of the pool that others may have work for; the next loop asks for it again.
const STAY: Duration = Duration::from_millis(100);
/// Looks at what is waited for between two yields to other threads.
const SPINS: usize = 64;
/// The bit of [`Team::state`] that says that members may come in.
const OPEN: usize = 1 << (usize::BITS - 1);

/// The team of one [`super::Cpu`].
pub(super) struct Team {
    pool: Arc<rayon::ThreadPool>,
    /// Held by who runs a loop.
    busy: Mutex<()>,
    /// [`OPEN`] while a loop has tasks that nobody took, and how many members are inside of it.
    state: AtomicUsize,
    /// The loop, on its caller's stack: to be followed only from inside.
    work: AtomicPtr<Loop<'static>>,
    /// One for the caller, then one for each member.
    seats: Box<[Seat]>,
}

/// What one thread of a team has, on a cache line of its own (and the one that is fetched beside it).
#[derive(Default)]
#[repr(align(128))]
struct Seat {
    /// Whether a member was asked to come and has not left since.
    is_taken: AtomicBool,
    /// The first of its tasks that nobody took, and the end of them, in 32 bits each.
    tasks: AtomicU64,
}

/// A loop that runs.
struct Loop<'a> {
    f: &'a (dyn Fn(usize) + Sync),
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    pub(super) fn new(pool: Arc<rayon::ThreadPool>) -> Self {
        let seats = (0..pool.current_num_threads()).map(|_| Seat::default()).collect();
        Team { pool, busy: Mutex::default(), state: AtomicUsize::new(0), work: AtomicPtr::default(), seats }
    }

    /// Calls `f(i)` once for every `i < tasks`, and returns true; or false, having done nothing, when the team is at another loop.
    pub(super) fn run(self: &Arc<Self>, tasks: usize, f: &(dyn Fn(usize) + Sync)) -> bool {
        let Ok(tasks) = u32::try_from(tasks) else { return false };
        let _busy = match self.busy.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let part = |seat: usize| (u64::from(tasks) * seat as u64 / self.seats.len() as u64) as u32;
        for (i, seat) in self.seats.iter().enumerate() {
            seat.tasks.store(pack(part(i), part(i + 1)), SeqCst);
        }
        let work = Loop { f, panic: Mutex::default() };
        let opened = Opened(self);
        self.work.store(ptr::from_ref(&work).cast_mut().cast(), SeqCst);
        self.state.store(OPEN, SeqCst);
        for seat in 1..self.seats.len().min(tasks as usize) {
            if !self.seats[seat].is_taken.swap(true, SeqCst) {
                let team = self.clone();
                self.pool.spawn(move || team.member(seat));
            }
        }
        self.take_tasks(&work, 0);
        drop(opened);
        match work.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(panic) => resume_unwind(panic),
            None => true,
        }
    }

    /// What a thread of the pool does: loops as they come, until none came for a while.
    fn member(&self, seat: usize) {
        let (is_taken, came) = (&self.seats[seat].is_taken, Instant::now());
        loop {
            while came.elapsed() < STAY && wait_until(Some(LINGER), || self.come_in()) {
                // SAFETY: `run` stored the loop before it opened the door, and does not leave before all who came in have: see `Opened`.
                let work = unsafe { &*self.work.load(SeqCst) };
                self.take_tasks(work, seat);
                self.state.fetch_sub(1, SeqCst);
            }
            is_taken.store(false, SeqCst);
            // A loop that was opened meanwhile may have seen the seat taken.
            if came.elapsed() >= STAY || self.state.load(SeqCst) & OPEN == 0 || is_taken.swap(true, SeqCst) {
                return;
            }
        }
    }

    /// Joins the loop that is open, if one is.
    fn come_in(&self) -> bool {
        self.state.load(SeqCst) & OPEN != 0
            && self.state.fetch_update(SeqCst, SeqCst, |state| (state & OPEN != 0).then(|| state + 1)).is_ok()
    }

    /// Runs tasks until none is left to take, then closes the door.
    fn take_tasks(&self, work: &Loop, seat: usize) {
        let tasks = catch_unwind(AssertUnwindSafe(|| {
            while let Some(task) = self.task_for(seat) {
                (work.f)(task as usize);
            }
        }));
        if let Err(panic) = tasks {
            // The last one is kept; others are not dropped either, which could panic again.
            if let Some(panic) = work.panic.lock().unwrap_or_else(PoisonError::into_inner).replace(panic) {
                std::mem::forget(panic);
            }
            while self.task_for(seat).is_some() {}
        }
        self.state.fetch_and(!OPEN, SeqCst);
    }

    /// The first task of this seat, else the last of another.
    fn task_for(&self, seat: usize) -> Option<u32> {
        let take = |seat: &Seat, of: fn(u32, u32) -> (u64, u32)| {
            let mut task = 0;
            let taken = seat.tasks.fetch_update(SeqCst, SeqCst, |tasks| {
                let (first, end) = (tasks as u32, (tasks >> 32) as u32);
                let (left, taken) = of(first, end);
                task = taken;
                (first < end).then_some(left)
            });
            taken.ok().map(|_| task)
        };
        let own = take(&self.seats[seat], |first, end| (pack(first + 1, end), first));
        own.or_else(|| {
            let (before, after) = self.seats.split_at(seat);
            let others = after[1..].iter().chain(before);
            others
                .into_iter()
                .find_map(|other| take(other, |first, end| (pack(first, end.saturating_sub(1)), end.saturating_sub(1))))
        })
    }
}

/// A team at a loop of the stack frame below, which must not go, however it ends, before the last member has left.
struct Opened<'a>(&'a Team);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, SeqCst);
        wait_until(None, || self.0.state.load(SeqCst) == 0);
    }
}

/// Tasks `first .. end` as one number.
fn pack(first: u32, end: u32) -> u64 {
    u64::from(first) | u64::from(end) << 32
}

/// Looks until `is_true`, at most so long; whether it became true. Other threads that have nowhere else to run are let through.
fn wait_until(most: Option<Duration>, mut is_true: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..SPINS {
            if is_true() {
                return true;
            }
            std::hint::spin_loop();
        }
        if most.is_some_and(|most| start.elapsed() > most) {
            return false;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(threads: usize) -> Arc<Team> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool");
        Arc::new(Team::new(Arc::new(pool)))
    }

    /// A loop that counts how often each task ran.
    fn counts(tasks: usize, run: impl FnOnce(&(dyn Fn(usize) + Sync))) -> Vec<usize> {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        run(&|i| {
            counts[i].fetch_add(1, SeqCst);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_for_any_number_of_threads_and_tasks() {
        for threads in [1, 2, 3, 7] {
            let team = team(threads);
            for tasks in (0..40).chain([1000]) {
                assert_eq!(counts(tasks, |f| assert!(team.run(tasks, f))), vec![1; tasks], "{tasks} on {threads}");
            }
        }
    }

    #[test]
    fn members_that_left_are_asked_again() {
        let team = team(3);
        for _ in 0..5 {
            assert_eq!(counts(50, |f| assert!(team.run(50, f))), [1; 50]);
            wait_until(Some(3 * LINGER), || false);
            wait_until(None, || team.seats.iter().all(|seat| !seat.is_taken.load(SeqCst)));
        }
    }

    #[test]
    fn a_loop_within_a_loop_or_beside_one_is_refused() {
        let team = team(2);
        assert!(team.run(4, &|_| assert!(!team.run(2, &|_| unreachable!()))));
        let counted = AtomicUsize::new(0);
        let count = |_| {
            counted.fetch_add(1, SeqCst);
        };
        let each = || (0..200).filter(|_| team.run(8, &count)).count();
        let ran: usize = std::thread::scope(|scope| {
            [scope.spawn(each), scope.spawn(each)].map(|thread| thread.join().expect("no panic")).iter().sum()
        });
        assert!(ran > 0 && counted.load(SeqCst) == 8 * ran, "{ran} loops");
    }

    #[test]
    fn a_pool_whose_threads_are_busy_leaves_the_tasks_to_the_caller_and_goes_on_after() {
        let team = team(2);
        let (busy, end) = (Arc::new(std::sync::Barrier::new(3)), Arc::new(AtomicBool::new(false)));
        for _ in 0..2 {
            let (busy, end) = (busy.clone(), end.clone());
            team.pool.spawn(move || {
                busy.wait();
                wait_until(None, || end.load(SeqCst));
            });
        }
        busy.wait();
        let caller = std::thread::current().id();
        assert_eq!(
            counts(9, |f| assert!(team.run(9, &|i| {
                assert_eq!(std::thread::current().id(), caller);
                f(i);
            }))),
            [1; 9]
        );
        end.store(true, SeqCst);
        assert_eq!(counts(9, |f| assert!(team.run(9, f))), [1; 9]);
    }

    #[test]
    fn a_pool_serves_others_while_a_team_is_at_work() {
        let team = team(2);
        let pool = team.pool.clone();
        // One thread of the pool is the caller, the other a member that never waits in vain.
        pool.install(|| {
            let served = Arc::new(AtomicUsize::new(0));
            let serve = served.clone();
            team.run(8, &|_| {});
            team.pool.spawn(move || {
                serve.fetch_add(1, SeqCst);
            });
            wait_until(None, || {
                team.run(8, &|_| {});
                served.load(SeqCst) == 1
            });
        });
    }

    #[test]
    fn a_team_and_its_pool_may_go_while_a_member_waits() {
        let team = team(3);
        assert_eq!(counts(9, |f| assert!(team.run(9, f))), [1; 9]);
        let members = Arc::downgrade(&team);
        drop(team);
        wait_until(None, || members.strong_count() == 0);
    }

    #[test]
    fn a_panic_of_any_task_reaches_the_caller_and_the_team_goes_on() {
        let team = team(2);
        for bad in [0, 63] {
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(64, &|i| assert!(i != bad, "task {i}"))));
            let panic = caught.expect_err("a task panicked");
            assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(&*format!("task {bad}")));
            assert_eq!(counts(64, |f| assert!(team.run(64, f))), [1; 64]);
        }
    }
}
