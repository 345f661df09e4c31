//! Listeners and clusters in files, watched: Envoy's `path_config_source`.
//!
//! In: files with a DiscoveryResponse in YAML or JSON. Out: replacements through a [`Handle`]. Kept true: a file that does not parse
//! changes nothing. Not here: the bootstrap itself.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use mesh_runtime::drain::Watch;
use serde_json::Value;

use crate::xds::{Handle, Kind, Resource};

/// How often a file is looked at. A changed file is read once it stands unchanged between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Watches one file until drained.
pub async fn watch(kind: Kind, path: PathBuf, handle: Handle, drain: Watch) {
    let (mut seen, mut applied) = (None, None);
    loop {
        let now = stamp(&path);
        if now != applied && now == seen {
            applied = now;
            match apply(kind, &path, &handle).await {
                Ok(count) => tracing::info!(file = %path.display(), count, "configuration read"),
                Err(why) => tracing::warn!("{why:#}; what was read before stays in force"),
            }
        }
        seen = now;
        if drain.until_drain(tokio::time::sleep(LOOK)).await.is_none() {
            return;
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

async fn apply(kind: Kind, path: &Path, handle: &Handle) -> anyhow::Result<usize> {
    let text = tokio::fs::read_to_string(path).await.with_context(|| path.display().to_string())?;
    let resources = parse(kind, &text).with_context(|| path.display().to_string())?;
    let count = resources.len();
    handle.replace(kind, resources).await.map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
    Ok(count)
}

/// The resources of a file.
///
/// # Errors
/// Names the resource and its field.
pub fn parse(kind: Kind, text: &str) -> anyhow::Result<Vec<Resource>> {
    let json: Value = serde_saphyr::from_str(text).context("not valid YAML")?;
    let version = json["version_info"].as_str().unwrap_or_default().to_owned();
    let items = json["resources"].as_array().context("resources: a list is needed")?;
    let mut resources = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let at = || format!("resources[{i}]");
        let mut item = item.clone();
        let url = item.as_object_mut().and_then(|fields| fields.remove("@type"));
        anyhow::ensure!(
            url.as_ref().and_then(Value::as_str) == Some(kind.url()),
            "{}.@type: must be {}",
            at(),
            kind.url()
        );
        let raw = xds::reflect::from_json(kind.url(), &item).map_err(anyhow::Error::msg).with_context(at)?;
        resources.push(Resource::decode(kind, "", &version, raw.into()).with_context(at)?);
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_resources_of_its_kind_only() {
        let text = "version_info: '3'\nresources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: c\n";
        let resources = parse(Kind::Cluster, text).expect("valid");
        assert_eq!((&*resources[0].name, resources[0].version.as_str()), ("c", "3"));
        let error = parse(Kind::Listener, text).expect_err("refused").to_string();
        assert!(error.starts_with("resources[0].@type: must be"), "{error}");
    }
}
