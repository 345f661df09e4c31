//! The talk, the suite and the disturbances in a real cluster: the list that `e2e cluster` plays.
//!
//! In: `CREMA_TEST_KUBECONFIG`. Out: pass or fail; ignored with the reason where no cluster is named. Kept true: the mesh is installed
//! from the manifest, and nothing of it is left at the end. Not here: the same talk on this machine (`local`).

use std::process::ExitCode;

use anyhow::{Context, ensure};
use e2e::{
    cluster::{
        command::{ClusterArgs, play},
        test_kubeconfig,
    },
    images::Profile,
    peers,
    scenarios::shop::author_files,
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let reason = match test_kubeconfig() {
        Some(_) => String::new(),
        None => " (ignored: $CREMA_TEST_KUBECONFIG names no kubeconfig)".to_owned(),
    };
    let name = format!("the_talk_the_suite_and_the_disturbances_in_a_cluster{reason}");
    let trial = Trial::test(name, || whole().map_err(|e| Failed::from(format!("{e:#}"))))
        .with_ignored_flag(!reason.is_empty());
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

fn whole() -> anyhow::Result<()> {
    let args = ClusterArgs {
        kubeconfig: test_kubeconfig().context("ignored without it")?,
        load: None,
        no_images: false,
        profile: Profile::Dev,
        // The author's own files, where they are: what must apply unchanged.
        author: author_files().is_some(),
        only: Vec::new(),
        keep: false,
        again: false,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let held = runtime.block_on(play(args));
    // What other tests start comes back: linked as ever.
    peers::build()?;
    ensure!(held?, "see the lines marked FAIL above");
    Ok(())
}
