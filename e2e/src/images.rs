//! `e2e images`: container images without a container engine.
//!
//! In: the workspace's binaries, linked statically. Out: docker-archive files, which `ctr image import` and `kind load image-archive` take.
//! Kept true: an image holds one file and no shell; equal binaries give equal archives. Not here: who runs them (`deploy/`).

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use aws_lc_rs::digest;
use clap::ValueEnum;
use serde_json::json;

use crate::peers;

/// How images are made.
#[derive(Debug, Clone, clap::Args)]
pub struct ImagesArgs {
    /// How binaries are compiled: `dist` is what is shipped, `dev` is quick to build where tests have been built
    #[arg(long, value_enum, default_value_t = Profile::Dist)]
    pub profile: Profile,
    /// Where the archives go
    #[arg(long, default_value = "target/images", value_name = "DIR")]
    pub out: PathBuf,
    /// Tag of the images; may be repeated
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only the images whose name contains one of these
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
}

/// A profile of Cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Optimised over crate boundaries, no symbols.
    Dist,
    /// The profile of tests.
    Dev,
}

/// An image: its name, the binary in it, what the entrypoint adds, and as whom it runs.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Name without tag, as manifests write it.
    pub name: &'static str,
    /// Package and file.
    pub binary: &'static str,
    /// Arguments of the entrypoint.
    pub verb: &'static [&'static str],
    /// `uid:gid`; empty for the engine's default, root.
    pub user: &'static str,
    /// Manifests name it without a tag.
    pub latest: bool,
}

const fn component(name: &'static str, binary: &'static str) -> Image {
    Image { name, binary, verb: &[], user: "1337:1337", latest: false }
}

const fn sample(name: &'static str, verb: &'static [&'static str]) -> Image {
    // Port 80, as the shop's manifests have it: root, or a kernel that lets everybody.
    Image { name, binary: "espresso-shop", verb, user: "", latest: true }
}

/// All images: the mesh's, the shop's under both names that manifests use, and what tests run.
pub const IMAGES: [Image; 13] = [
    component("crema/proxy", "proxy"),
    component("crema/pilot", "pilot"),
    component("crema/citadel", "citadel"),
    component("crema/mixer", "mixer"),
    component("crema/injector", "injector"),
    sample("crema/espresso-shop-web", &["web"]),
    sample("crema/espresso-shop-product-catalog", &["product-catalog"]),
    sample("crema/espresso-shop-reviews", &["reviews"]),
    sample("crema/echo", &["echo"]),
    sample("crema/espresso-shop", &[]),
    sample("hossambarakat/espresso-shop-web", &["web"]),
    sample("hossambarakat/espresso-shop-product-catalog", &["product-catalog"]),
    sample("hossambarakat/espresso-shop-reviews", &["reviews"]),
];

/// Builds, and writes one archive per binary; prints their sizes.
///
/// # Errors
/// When a build fails or a file cannot be written.
pub fn run(args: &ImagesArgs) -> anyhow::Result<()> {
    for archive in make(args)? {
        let size = fs::metadata(&archive)?.len();
        println!("{} {:.1} MB", archive.display(), mebibytes(size));
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// Builds, and writes one archive per binary, with all images that hold it.
///
/// # Errors
/// When a build fails or a file cannot be written.
pub fn make(args: &ImagesArgs) -> anyhow::Result<Vec<PathBuf>> {
    let out = peers::root().join(&args.out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let wanted = |image: &&Image| {
        args.only.is_empty() || args.only.iter().any(|name| image.name.contains(name.as_str()))
    };
    let images: Vec<Image> = IMAGES.iter().filter(wanted).copied().collect();
    ensure!(!images.is_empty(), "no image is called {:?}", args.only);
    let mut binaries: Vec<&str> = images.iter().map(|i| i.binary).collect();
    binaries.dedup();
    let mut archives = Vec::new();
    let dir = linked(args.profile)?;
    for binary in binaries {
        let file = dir.join(binary);
        let images: Vec<Image> = images.iter().filter(|i| i.binary == binary).copied().collect();
        let path = out.join(format!("{binary}.tar"));
        let written = archive(&images, &file, &args.tag, &path);
        written.with_context(|| format!("writing {}", path.display()))?;
        archives.push(path);
    }
    Ok(archives)
}

/// Links all binaries statically, for an empty root; returns where they are. They are cached beside those of ordinary builds, and the
/// next ordinary build puts its own in their place.
///
/// # Errors
/// When the build fails.
pub fn linked(profile: Profile) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "--quiet", "--bins", "--profile"]).current_dir(peers::root());
    command.arg(if profile == Profile::Dist { "dist" } else { "dev" });
    for package in ["proxy", "pilot", "citadel", "mixer", "injector", "espresso-shop"] {
        command.args(["-p", package]);
    }
    if profile == Profile::Dev {
        // With e2e among them the features are those of the tests: nothing outside the workspace is built twice.
        command.args(["-p", "e2e"]);
    }
    command.env("RUSTC_WORKSPACE_WRAPPER", peers::root().join("e2e/static-rustc"));
    let status = command.status().context("cargo does not start")?;
    ensure!(status.success(), "building static binaries ended with {status}");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| peers::root().join("target"), PathBuf::from);
    Ok(target.join(if profile == Profile::Dist { "dist" } else { "debug" }))
}

/// Writes a docker-archive: one layer with one file, and a configuration per image.
fn archive(images: &[Image], binary: &Path, tags: &[String], path: &Path) -> anyhow::Result<()> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let layer =
        layer(&name, &fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?)?;
    let layer_id = hex(&layer);
    let layer_name = format!("{layer_id}/layer.tar");
    let mut files = vec![(layer_name.clone(), layer)];
    let mut manifest = Vec::new();
    for image in images {
        let entrypoint: Vec<String> =
            std::iter::once(format!("/{name}")).chain(image.verb.iter().map(|v| (*v).to_owned())).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": { "Entrypoint": entrypoint, "User": image.user },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        });
        let config = serde_json::to_vec(&config)?;
        let config_name = format!("{}.json", hex(&config));
        let latest = image.latest.then(|| format!("{}:latest", image.name));
        let tagged: Vec<String> =
            tags.iter().map(|tag| format!("{}:{tag}", image.name)).chain(latest).collect();
        manifest.push(json!({ "Config": config_name, "RepoTags": tagged, "Layers": [layer_name] }));
        if !files.iter().any(|(name, _)| *name == config_name) {
            files.push((config_name, config));
        }
    }
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest)?));
    let mut tar = tar::Builder::new(File::create(path)?);
    for (name, bytes) in &files {
        tar.append_data(&mut header(bytes, 0o644)?, name, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

/// A layer with one program in its root.
fn layer(name: &str, program: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header(program, 0o755)?, name, program)?;
    Ok(tar.into_inner()?)
}

/// Nothing of this machine or this moment: root's, from 1970.
fn header(bytes: &[u8], mode: u32) -> anyhow::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Ok(header)
}

fn hex(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, io::Read};

    fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(File::open(path).expect("the archive"));
        let mut files = BTreeMap::new();
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("bytes");
            files.insert(entry.path().expect("a name").display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn an_archive_names_its_images_and_its_layer_by_content() {
        let dir = tempfile::tempdir().expect("a directory");
        let binary = dir.path().join("espresso-shop");
        fs::write(&binary, b"a program").expect("written");
        let images: Vec<Image> = IMAGES.iter().filter(|i| i.binary == "espresso-shop").copied().collect();
        let path = dir.path().join("shop.tar");
        archive(&images, &binary, &["1".to_owned(), "2".to_owned()], &path).expect("written");
        let files = read(&path);
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        let list = manifest.as_array().expect("a list");
        assert_eq!(list.len(), images.len());
        for (image, entry) in images.iter().zip(list) {
            let tags =
                [format!("{}:1", image.name), format!("{}:2", image.name), format!("{}:latest", image.name)];
            assert_eq!(entry["RepoTags"], json!(tags));
            let config = &files[entry["Config"].as_str().expect("a name")];
            assert_eq!(entry["Config"], format!("{}.json", hex(config)));
            let config: serde_json::Value = serde_json::from_slice(config).expect("JSON");
            let layer = &files[entry["Layers"][0].as_str().expect("a name")];
            assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(layer)));
            assert_eq!(config["config"]["Entrypoint"][0], "/espresso-shop");
        }
        let again = dir.path().join("again.tar");
        archive(&images, &binary, &["1".to_owned(), "2".to_owned()], &again).expect("written");
        assert!(fs::read(&path).expect("read") == fs::read(&again).expect("read"), "two runs differ");
    }

    #[test]
    fn every_image_that_a_manifest_names_is_made() {
        let deploy = peers::root().join("deploy");
        let mut named = 0;
        for file in ["crema.yaml", "espresso-shop/espresso-shop.yaml", "espresso-shop/broken-replica.yaml"] {
            let text = fs::read_to_string(deploy.join(file)).expect("a manifest");
            for line in text.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix("image: "))
            {
                let name = line.split(':').next().unwrap_or_default();
                assert!(IMAGES.iter().any(|i| i.name == name), "{file}: {line}");
                named += 1;
            }
        }
        assert!(named >= 10, "{named}");
    }
}
