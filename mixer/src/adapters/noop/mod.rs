//! `noop`: takes every template and does nothing, for measuring mixer itself.
//!
//! In: anything. Out: nothing; checks pass, quotas are granted.
//! Kept true: no work, no allocation. Not here: anything else.

use std::sync::Arc;

use super::{Adapter, AdapterKind};
use crate::config::Template;

pub(super) const KIND: AdapterKind =
    AdapterKind { name: "noop", templates: Template::ALL, build: |_, _| Some(Arc::new(Noop)) };

struct Noop;

impl Adapter for Noop {}
