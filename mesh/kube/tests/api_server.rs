//! The crate against a real API server: `CREMA_TEST_KUBECONFIG=FILE cargo test -p mesh-kube --test api_server`.
//!
//! In: a kubeconfig whose user may do everything. Out: pass or fail; ignored with the reason where there is none.
//! Kept true: all that is made has a name of this process and is removed again. Not here: the fake server's tests (`source`).

use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_kube::{
    k8s_openapi::api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        coordination::v1::Lease,
        core::v1::{Namespace, Service},
    },
    kube,
    lease::lead,
    source::{Wanted, watch},
    webhook,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{future::Future, path::Path, process::ExitCode, sync::Arc, time::Duration};
use tokio::sync::oneshot;

const VARIABLE: &str = "CREMA_TEST_KUBECONFIG";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let file = std::env::var(VARIABLE).ok().filter(|file| Path::new(file).is_file());
    let reason =
        if file.is_none() { format!(" (ignored: ${VARIABLE} names no kubeconfig)") } else { String::new() };
    let with = |name: &str, test: fn(Client) -> Outcome| {
        let file = file.clone();
        Trial::test(format!("{name}{reason}"), move || run(file.as_deref().unwrap_or_default(), test))
            .with_ignored_flag(!reason.is_empty())
    };
    let trials = vec![
        with("services_are_read_as_they_come_and_go", |c| Box::pin(services(c))),
        with("of_two_candidates_one_leads_and_the_other_follows_at_once_when_it_ends", |c| {
            Box::pin(leases(c))
        }),
        with("roots_are_kept_in_a_webhook_configuration_and_put_back", |c| Box::pin(webhooks(c))),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

type Outcome = std::pin::Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

fn run(file: &str, test: fn(Client) -> Outcome) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default())
                .await?;
        let client = Client::try_from(config)?;
        tokio::time::timeout(PATIENCE, test(client)).await.map_err(|_| Failed::from("took too long"))?
    })
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

fn own_name(of: &str) -> String {
    format!("crema-test-{of}-{}", std::process::id())
}

async fn services(client: Client) -> Result<(), Failed> {
    let namespace = own_name("source");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let (post, delete) = (PostParams::default(), DeleteParams::default());
    namespaces.create(&post, &typed(json!({"metadata": {"name": namespace}}))).await?;
    let wanted = Wanted::new(&namespace).services().namespaces();
    let (mut reader, _seen, task) = watch(client.clone(), wanted, std::future::pending());
    let task = tokio::spawn(task);
    let first = reader.synced().await;
    let here = first.namespaces.get("", &namespace).is_some();
    let services: Api<Service> = Api::namespaced(client, &namespace);
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    services.create(&post, &typed(service)).await?;
    let has = |snapshot: &mesh_config::Snapshot| snapshot.services.get(&namespace, "web").is_some();
    while !has(reader.changed().await.ok_or("the source ended")?.as_ref()) {}
    services.delete("web", &delete).await?;
    while has(reader.changed().await.ok_or("the source ended")?.as_ref()) {}
    task.abort();
    namespaces.delete(&namespace, &delete).await?;
    if here {
        Ok(())
    } else {
        Err("the namespace was there at the start and is not in the first snapshot".into())
    }
}

async fn leases(client: Client) -> Result<(), Failed> {
    let name = own_name("lease");
    let candidate = |identity: &str| {
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = async move {
            let _ = stopped.await;
        };
        let (leader, election) = lead(client.clone(), "default", &name, identity, None, ended);
        (leader, tokio::spawn(election), stop)
    };
    let (mut first, first_task, stop_first) = candidate("first");
    first.elected().await;
    let (mut second, second_task, stop_second) = candidate("second");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let alone = first.is_leader() && !second.is_leader();
    drop(stop_first);
    first_task.await?;
    let took = tokio::time::timeout(Duration::from_secs(10), second.elected()).await;
    drop(stop_second);
    second_task.await?;
    Api::<Lease>::namespaced(client.clone(), "default").delete(&name, &DeleteParams::default()).await?;
    match (alone, took, first.is_leader()) {
        (true, Ok(()), false) => Ok(()),
        other => Err(format!("alone, took over, still leads: {other:?}").into()),
    }
}

async fn webhooks(client: Client) -> Result<(), Failed> {
    let name = own_name("webhook");
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let hook = json!({"name": "test.crema.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "failurePolicy": "Ignore", "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": {"matchLabels": {"nobody-has": "this-label"}}});
    api.create(&PostParams::default(), &typed(json!({"metadata": {"name": name}, "webhooks": [hook]})))
        .await?;
    let roots = mesh_config_root()?;
    let (tx, rx) = tokio::sync::watch::channel(webhook::Settings { roots: roots.clone(), closed: true });
    let kept = name.clone();
    let keeping =
        tokio::spawn(async move { webhook::keep(client, webhook::Kind::Mutating, &kept, rx).await });
    let mut result = wait_for(&api, &name, &roots).await;
    if result.is_ok() {
        let reset = json!({"webhooks": [{"name": "test.crema.example", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "failurePolicy": "Ignore", "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": {"matchLabels": {"nobody-has": "this-label"}}}]});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&reset)).await?;
        result = wait_for(&api, &name, &roots).await;
    }
    drop(tx);
    keeping.await?;
    api.delete(&name, &DeleteParams::default()).await?;
    result
}

/// Roots of the API server itself: any certificate will do, but one it must be.
fn mesh_config_root() -> Result<Arc<str>, Failed> {
    let file = std::env::var(VARIABLE)?;
    let config = Kubeconfig::read_from(file)?;
    let cluster = config.clusters.into_iter().find_map(|c| c.cluster).ok_or("a cluster in the kubeconfig")?;
    match (cluster.certificate_authority, cluster.certificate_authority_data) {
        (Some(file), _) => Ok(std::fs::read_to_string(file)?.into()),
        (None, Some(data)) => {
            use base64::Engine as _;
            let pem = base64::engine::general_purpose::STANDARD.decode(data)?;
            Ok(String::from_utf8(pem)?.into())
        }
        (None, None) => Err("the kubeconfig names no certificate authority".into()),
    }
}

async fn wait_for(api: &Api<MutatingWebhookConfiguration>, name: &str, roots: &str) -> Result<(), Failed> {
    for _ in 0..100 {
        let found = api.get(name).await?;
        let hook = &found.webhooks.ok_or("webhooks")?[0];
        let bundle = hook.client_config.ca_bundle.as_ref().map(|b| b.0.as_slice());
        if bundle == Some(roots.as_bytes()) && hook.failure_policy.as_deref() == Some("Fail") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("caBundle and failurePolicy were not set".into())
}
