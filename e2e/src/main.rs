//! The e2e binary.
fn main() {}
