//! `denier`: refuses everything it is asked about.
//!
//! In: `checknothing`, `listentry`, `quota`. Out: the status of its settings, FAILED_PRECONDITION unless they say else.
//! Kept true: a denial is never code 0. Not here: when it is asked (rules), HTTP codes (`policy`).

use std::{sync::Arc, time::Duration};

use super::{
    Adapter, AdapterKind,
    item::{CheckInstance, CheckResult, QuotaInstance, QuotaResult},
};
use crate::config::{Fields, Template};

pub(super) const KIND: AdapterKind = AdapterKind {
    name: "denier",
    templates: &[Template::CheckNothing, Template::ListEntry, Template::Quota],
    build,
};

const FAILED_PRECONDITION: i32 = 9;

struct Denier(CheckResult);

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let status = fields.object("status");
    let code = match status.int("code").map(i32::try_from) {
        None => FAILED_PRECONDITION,
        Some(Ok(code @ 1..=16)) => code,
        Some(_) => {
            fields
                .problems()
                .error(status.at("code"), "must be a gRPC code from 1 to 16; 7 is PERMISSION_DENIED");
            return None;
        }
    };
    status.raw("details");
    Some(Arc::new(Denier(CheckResult {
        code,
        message: status.text("message").unwrap_or_default().to_owned(),
        valid_for: fields.duration("valid_duration").unwrap_or(Duration::from_secs(5)),
        valid_uses: fields.int("valid_use_count").and_then(|n| i32::try_from(n).ok()).unwrap_or(1_000),
    })))
}

impl Adapter for Denier {
    fn check(&self, _: &CheckInstance) -> CheckResult {
        self.0.clone()
    }

    fn quota(&self, _: &QuotaInstance) -> QuotaResult {
        let CheckResult { code, message, valid_for, .. } = self.0.clone();
        QuotaResult { code, message, granted: 0, valid_for }
    }
}
