//! The mixer binary.
fn main() {}
