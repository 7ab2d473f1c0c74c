//! One file an op: its truth, its shapes, how it runs.

pub mod binary;
pub mod copy;

use crate::case::{AnyCase, boxed};

/// Calls the macro `$callback` with every file here and the cases in it, `file: Case, OtherCase;`.
#[macro_export]
macro_rules! for_each_case {
    ($callback:ident) => {
        $callback! {
            binary: Binary;
            copy: Copy;
        }
    };
}

macro_rules! all {
    ($($file:ident: $($case:ident),+;)*) => {
        /// The names of all files.
        pub const FILES: &[&str] = &[$(stringify!($file)),*];

        /// All instances of the cases of a file; none for a file that is not there.
        #[must_use]
        pub fn of(file: &str) -> Vec<Box<dyn AnyCase>> {
            match file {
                $(stringify!($file) => [$(boxed::<$file::$case>()),+].into_iter().flatten().collect(),)*
                _ => Vec::new(),
            }
        }
    };
}
for_each_case!(all);
