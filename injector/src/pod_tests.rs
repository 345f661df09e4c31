use super::*;

fn owner() -> Owner {
    Owner {
        namespace: "default".into(),
        workload: "reviews-v1".into(),
        reference: "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1".into(),
    }
}

fn pod() -> Value {
    json!({
        "metadata": { "labels": { "app": "reviews", "version": "v1" } },
        "spec": {
            "initContainers": [{ "name": "migrate", "image": "m" }],
            "containers": [{
                "name": "app", "image": "a", "ports": [{ "containerPort": 80, "name": "http" }],
                "readinessProbe": { "httpGet": { "path": "/", "port": "http" } },
            }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    })
}

fn annotated(annotations: &[(&str, &str)]) -> Value {
    let mut pod = pod();
    for (key, value) in annotations {
        metadata(&mut pod, "annotations").insert((*key).into(), json!(value));
    }
    pod
}

fn injected(pod: &Value, settings: &Settings) -> Value {
    match inject(pod, &owner(), settings, &Templates::default()) {
        Ok(Outcome::Injected { pod, .. }) => pod,
        other => panic!("{other:?}"),
    }
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    containers(pod, list).map(|c| name_of(c).to_owned()).collect()
}

fn proxy(pod: &Value) -> Value {
    let mut all = containers(pod, "initContainers").chain(containers(pod, "containers"));
    all.find(|c| name_of(c) == PROXY).expect("a proxy").clone()
}

fn env(pod: &Value, name: &str) -> Option<String> {
    let proxy = proxy(pod);
    let all = proxy["env"].as_array().expect("a list").clone();
    all.iter().find(|e| name_of(e) == name).map(|e| e["value"].as_str().unwrap_or("fieldRef").to_owned())
}

#[test]
fn the_proxy_is_a_native_sidecar_or_the_last_container_and_captures_or_not() {
    let settings = Settings::default();
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        (&[], &["istio-init", "istio-proxy", "migrate"], &["app"]),
        (&[("sidecar.istio.io/interceptionMode", "NONE")], &["istio-proxy", "migrate"], &["app"]),
        (&[("sidecar.istio.io/nativeSidecar", "false")], &["migrate", "istio-init"], &["app", "istio-proxy"]),
        (
            &[
                ("sidecar.istio.io/nativeSidecar", "false"),
                ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: true"),
            ],
            &["migrate", "istio-init"],
            &["istio-proxy", "app"],
        ),
        (
            &[("sidecar.istio.io/nativeSidecar", "false"), ("sidecar.istio.io/interceptionMode", "NONE")],
            &["migrate"],
            &["app", "istio-proxy"],
        ),
    ];
    for (annotations, init, containers) in cases {
        let got = injected(&annotated(annotations), &settings);
        assert_eq!(names(&got, "initContainers"), init, "{annotations:?}");
        assert_eq!(names(&got, "containers"), containers, "{annotations:?}");
        let native = containers.len() == 1;
        assert_eq!(proxy(&got).get("restartPolicy").is_some(), native, "{annotations:?}");
    }
}

#[test]
fn the_pod_waits_for_its_proxy_and_its_proxy_for_connections() {
    let hold = ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: true");
    let classic = ("sidecar.istio.io/nativeSidecar", "false");
    for (annotations, waits) in [
        (&[][..], false),
        (&[hold], false),
        (&[classic], false),
        (&[classic, hold], true),
        (&[classic, hold, ("status.sidecar.istio.io/port", "0")], false),
    ] {
        let got = injected(&annotated(annotations), &Settings::default());
        let lifecycle = &proxy(&got)["lifecycle"];
        assert_eq!(lifecycle["preStop"]["exec"]["command"], json!(["/proxy", "drain"]), "{annotations:?}");
        assert_eq!(lifecycle["postStart"].is_object(), waits, "{annotations:?}");
    }
}

#[test]
fn a_health_port_of_the_pods_own_is_told_and_not_captured() {
    let excluded = |pod: &Value| {
        let init = pod["spec"]["initContainers"].as_array().expect("a list");
        let init = init.iter().find(|c| c["name"] == "istio-init").expect("capture");
        let env = init["env"].as_array().expect("a list");
        env.iter().find(|e| e["name"] == "EXCLUDE_INBOUND_PORTS").expect("set")["value"].clone()
    };
    let own = ("traffic.sidecar.istio.io/excludeInboundPorts", "22");
    for (annotations, port, ports) in [
        (&[][..], Some("15021"), ""),
        (&[("status.sidecar.istio.io/port", "15020"), own], Some("15020"), "22"),
        (&[("status.sidecar.istio.io/port", "8082")], Some("8082"), "8082"),
        (&[("status.sidecar.istio.io/port", "8082"), own], Some("8082"), "22,8082"),
        (&[("status.sidecar.istio.io/port", "0")], None, ""),
    ] {
        let got = injected(&annotated(annotations), &Settings::default());
        assert_eq!(env(&got, "HEALTH_PORT").as_deref(), port, "{annotations:?}");
        assert_eq!(excluded(&got), ports, "{annotations:?}");
    }
}

#[test]
fn the_proxy_learns_who_it_is_and_where_the_control_plane_lives() {
    let settings = Settings::read("{caAddr: 'ca:1', env: {EXTRA: 1}}").expect("settings");
    let got = injected(&annotated(&[("proxy.istio.io/config", "proxyMetadata: {A: b}")]), &settings);
    let cases = [
        ("POD_NAME", Some("fieldRef")),
        ("INSTANCE_IP", Some("fieldRef")),
        ("CA_ADDR", Some("ca:1")),
        ("TELEMETRY_ADDR", Some("mixer.istio-system.svc:15004")),
        ("ISTIO_META_INTERCEPTION_MODE", Some("REDIRECT")),
        ("ISTIO_META_WORKLOAD_NAME", Some("reviews-v1")),
        ("ISTIO_META_OWNER", Some("kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1")),
        ("EXTRA", Some("1")),
        ("A", Some("b")),
        ("LOG_LEVEL", None),
        ("ISTIO_KUBE_APP_PROBERS", Some(r#"{"/app-health/app/readyz":{"httpGet":{"path":"/","port":80}}}"#)),
    ];
    for (name, want) in cases {
        assert_eq!(env(&got, name).as_deref(), want, "{name}");
    }
    let config: Value = serde_json::from_str(&env(&got, "PROXY_CONFIG").expect("set")).expect("JSON");
    assert_eq!(config["discoveryAddress"], "pilot.istio-system.svc:15012");
    let labels = &got["metadata"]["labels"];
    assert_eq!(labels["security.istio.io/tlsMode"], "istio");
    assert_eq!(labels["service.istio.io/canonical-name"], "reviews");
    assert_eq!(labels["service.istio.io/canonical-revision"], "v1");
}

#[test]
fn injecting_twice_is_injecting_once() {
    let auto = json!({ "name": "istio-proxy", "image": "auto", "env": [{ "name": "MINE", "value": "1" }] });
    let mut declared = pod();
    declared["spec"]["containers"].as_array_mut().expect("a list").push(auto);
    let mounted = annotated(&[
        ("sidecar.istio.io/userVolume", r#"{"v":{"emptyDir":{}}}"#),
        ("sidecar.istio.io/userVolumeMount", r#"{"v":{"mountPath":"/v"}}"#),
    ]);
    for native in [true, false] {
        let settings = Settings { native_sidecars: native, ..Settings::default() };
        for start in [pod(), declared.clone(), mounted.clone(), annotated(&[("prometheus.io/port", "1")])] {
            let once = injected(&start, &settings);
            assert_eq!(injected(&once, &settings), once);
            // From the other form too: nothing of it stays.
            let other = injected(&start, &Settings { native_sidecars: !native, ..Settings::default() });
            assert_eq!(injected(&other, &settings)["spec"], once["spec"]);
        }
    }
}

#[test]
fn a_pod_injected_by_istio_1_1_gets_one_proxy_and_no_looping_init_container() {
    let mut old = pod();
    let spec = old["spec"].as_object_mut().expect("a map");
    spec.insert(
        "initContainers".into(),
        json!([{ "name": "istio-init", "restartPolicy": "Always", "image": "i" }]),
    );
    spec["containers"]
        .as_array_mut()
        .expect("a list")
        .push(json!({ "name": "istio-proxy", "image": "istio/proxyv2" }));
    spec["volumes"].as_array_mut().expect("a list").push(json!({ "name": "istio-certs", "secret": {} }));
    let got = injected(&old, &Settings::default());
    assert_eq!(names(&got, "initContainers"), ["istio-init", "istio-proxy"]);
    assert_eq!(names(&got, "containers"), ["app"]);
    assert_eq!(got["spec"]["initContainers"][0].get("restartPolicy"), None);
    assert!(!names(&got, "volumes").contains(&"istio-certs".to_owned()));
    assert_eq!(proxy(&got)["image"], "crema/proxy");
}

#[test]
fn a_template_with_restart_policy_on_its_init_container_is_defused() {
    let text = crate::template::BUILT_IN
        .replace("      name: istio-init\n", "      name: istio-init\n      restartPolicy: Always\n");
    let templates = Templates::read(&text).expect("templates");
    let Ok(Outcome::Injected { pod, .. }) = inject(&pod(), &owner(), &Settings::default(), &templates) else {
        panic!("not injected")
    };
    assert_eq!(pod["spec"]["initContainers"][0].get("restartPolicy"), None);
    assert_eq!(pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
}

#[test]
fn a_container_that_the_author_declared_is_laid_over_the_template() {
    let mut declared = pod();
    declared["spec"]["containers"].as_array_mut().expect("a list").push(json!({
        "name": "istio-proxy", "image": "auto", "resources": { "limits": { "cpu": "4" } },
    }));
    let got = injected(&declared, &Settings::default());
    assert_eq!(proxy(&got)["image"], "crema/proxy");
    assert_eq!(proxy(&got)["resources"]["limits"], json!({ "cpu": "4", "memory": "1Gi" }));
    assert_eq!(names(&got, "containers"), ["app"]);
}

#[test]
fn a_gateway_pod_is_the_proxy_as_router() {
    let pod = json!({
        "metadata": { "labels": { "istio": "ingressgateway" }, "annotations": { "inject.istio.io/templates": "gateway" } },
        "spec": { "containers": [{ "name": "istio-proxy", "image": "auto", "ports": [{ "containerPort": 8080 }] }] },
    });
    let got = injected(&pod, &Settings::default());
    assert_eq!(names(&got, "containers"), ["istio-proxy"]);
    assert_eq!(names(&got, "initContainers"), Vec::<String>::new());
    let proxy = proxy(&got);
    assert_eq!(proxy["args"], json!(["router"]));
    assert_eq!(proxy["ports"].as_array().expect("a list").len(), 2);
    assert_eq!(injected(&got, &Settings::default()), got);
}

#[test]
fn an_unknown_template_is_named_with_those_that_exist() {
    let pod = annotated(&[("inject.istio.io/templates", "sidecar, waypoint")]);
    let error =
        inject(&pod, &owner(), &Settings::default(), &Templates::default()).expect_err("unknown").to_string();
    assert!(error.contains("waypoint") && error.contains("gateway, sidecar"), "{error}");
}

#[test]
fn status_port_zero_leaves_all_probes_alone() {
    let got = injected(&annotated(&[("status.sidecar.istio.io/port", "0")]), &Settings::default());
    assert_eq!(proxy(&got).get("readinessProbe"), None);
    assert_eq!(got["spec"]["containers"][0], pod()["spec"]["containers"][0]);
}

#[test]
fn a_pods_own_metrics_annotations_stay_whole() {
    let got = injected(&annotated(&[("prometheus.io/port", "9000")]), &Settings::default());
    let annotations = got["metadata"]["annotations"].as_object().expect("a map");
    assert_eq!(annotations["prometheus.io/port"], "9000");
    assert!(!annotations.contains_key("prometheus.io/path"));
    let got = injected(&pod(), &Settings::default());
    assert_eq!(got["metadata"]["annotations"]["prometheus.io/port"], "15090");
}

#[test]
fn a_skipped_pod_says_why_and_a_broken_one_is_an_error() {
    let never = annotated(&[("sidecar.istio.io/inject", "false")]);
    let got = inject(&never, &owner(), &Settings::default(), &Templates::default());
    assert!(matches!(got, Ok(Outcome::Skipped(why)) if why.contains("annotation")));
    for broken in [json!({}), json!({ "spec": [] }), json!({ "spec": { "containers": [{ "image": "x" }] } })]
    {
        let got = inject(&broken, &owner(), &Settings::default(), &Templates::default());
        assert!(matches!(got, Err(InjectError::NotAPod(_))), "{broken}");
    }
}

#[test]
fn applications_without_a_pre_stop_hook_serve_on_when_the_operator_says_so() {
    let settings = Settings { app_pre_stop_seconds: 3, ..Settings::default() };
    let hook = |pod: &Value| pod.pointer("/spec/containers/0/lifecycle/preStop").cloned();
    let sleeps = Some(json!({ "sleep": { "seconds": 3 } }));
    assert_eq!(hook(&injected(&pod(), &settings)), sleeps);
    assert_eq!(hook(&injected(&pod(), &Settings::default())), None, "not unless asked for");

    let own = json!({ "exec": { "command": ["bye"] } });
    let mut with = pod();
    with["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": own });
    assert_eq!(hook(&injected(&with, &settings)), Some(own), "who has one keeps it");

    for (grace, want) in [(11, None), (12, sleeps)] {
        let mut hasty = pod();
        hasty["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        assert_eq!(hook(&injected(&hasty, &settings)), want, "{grace} s to end");
    }
    let once = injected(&pod(), &settings);
    assert_eq!(hook(&once), hook(&injected(&once, &settings)), "again");
}
