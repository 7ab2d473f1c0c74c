//! The virtual device as its host sees it: memory, modules, launches.
