//! The citadel binary.
fn main() {}
