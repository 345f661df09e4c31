//! The files of `deploy/crds` are what the schemas say. `UPDATE_GOLDEN=1` writes them anew.

use mesh_config::schema;
use std::path::Path;

#[test]
fn the_files_in_deploy_are_made_from_the_schemas() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let files = schema::files().expect("definitions can be written");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(&dir).expect("deploy/crds can be made");
        for (name, text) in &files {
            std::fs::write(dir.join(name), text).expect("the file can be written");
        }
    }
    for (name, text) in &files {
        let kept = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert!(
            kept == *text,
            "deploy/crds/{name} differs: UPDATE_GOLDEN=1 cargo test -p mesh-config --test crds"
        );
    }
    let mut kept: Vec<_> = std::fs::read_dir(&dir)
        .expect("deploy/crds is there")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    kept.sort();
    let mut names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    assert_eq!(kept, names, "files in deploy/crds that nobody makes, or the other way round");
}
