//! Bad input, line by line: what a person sees for each mistake.

use super::*;

const VS: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nspec:\n  hosts: [r]\n  http:\n";

const ROUTE: &str = "  - route: [{destination: {host: r}}]\n";

fn said(text: &str) -> Vec<String> {
    parse_text("f.yaml", text).diagnostics.iter().map(|d| format!("{d:#}")).collect()
}

#[test]
fn every_mistake_has_its_line_object_field_and_fix() {
    let vs = |rest: &str| format!("{VS}{rest}");
    let cases: Vec<(String, Vec<&str>)> = vec![
        (vs("  - route:\n    - destination: {host: r}\n      wieght: 5\n"), vec![
            "warning: f.yaml:9: VirtualService default/r: spec.http[0].route[0].wieght: unknown field, it has no effect: check its spelling and its place",
        ]),
        (vs("  - route:\n    - destination: {host: r}\n      weight: \"80\"\n"), vec![
            "error: f.yaml:9: VirtualService default/r: spec.http[0].route[0].weight: wrong type: string \"80\", expected a whole number: remove the quotes",
        ]),
        (vs("  - timeout: 5\n    route: [{destination: {host: r}}]\n"), vec![
            "error: f.yaml:7: VirtualService default/r: spec.http[0].timeout: wrong type: integer `5`, expected a duration such as \"0.5s\"",
        ]),
        (vs("  - timeout: 5 s\n    route: [{destination: {host: r}}]\n"), vec![
            "error: f.yaml:7: VirtualService default/r: spec.http[0].timeout: \"5 s\" is not a duration: write a number with a unit, such as \"0.5s\", \"10ms\" or \"1m30s\"",
        ]),
        (vs("  - match:\n    - uri: {exact: /a, prefix: /b}\n    route: [{destination: {host: r}}]\n"), vec![
            "error: f.yaml:8: VirtualService default/r: spec.http[0].match[0].uri: more than one of exact, prefix and regex is set: keep one of them",
        ]),
        (vs("  - match:\n    - headers:\n        end-user:\n    route: [{destination: {host: r}}]\n"), vec![
            "error: f.yaml:9: VirtualService default/r: spec.http[0].match[0].headers.end-user: a condition must not be empty: write {} for \"present\", or exact, prefix or regex",
        ]),
        (vs("  -\n  - route: [{destination: {host: r}}]\n"), vec![
            "warning: f.yaml:7: VirtualService default/r: spec.http[0]: an empty list item counts as absent: remove the dash or write the item",
        ]),
        (VS.replace("  http:\n", "  http: {route: []}\n"), vec![
            "error: f.yaml:6: VirtualService default/r: spec.http: wrong type: a mapping, expected a list: start its items with a dash",
        ]),
        (vs(ROUTE).replace("{name: r}", "{name: r, labels: {v: 1}}"), vec![
            "error: f.yaml:3: VirtualService default/r: metadata.labels.v: wrong type: integer `1`, expected a string: put it in quotes",
        ]),
        (VS.replace("name: r", "nam: r"), vec![
            "error: f.yaml:3: metadata.name: a VirtualService needs a name: write metadata.name",
        ]),
        (VS.replace("name: r", "name: My_Route").replace("  http:\n", "  http: [{route: [{destination: {host: r}}]}]\n"), vec![
            "error: f.yaml:3: VirtualService default/My_Route: metadata.name: not a name kubernetes takes: use lower-case letters, digits, '-' and '.'",
        ]),
        (vs(ROUTE).replace("networking.istio.io/v1\n", "networking.istio.io/v2\n"), vec![
            "error: f.yaml:1: VirtualService default/r: apiVersion: networking.istio.io/v2 has no kind VirtualService: write networking.istio.io/v1",
        ]),
        ("kind: Gateway\nmetadata: {name: g}\n".into(), vec![
            "error: f.yaml:1: apiVersion: missing or no text: write e.g. apiVersion: networking.istio.io/v1",
        ]),
        ("- a\n- b\n".into(), vec!["error: f.yaml:1: a document must be a mapping with apiVersion, kind and metadata"]),
        ("apiVersion: networking.istio.io/v1\nkind: Virtualservice\nmetadata: {name: r}\n".into(), vec![
            "warning: f.yaml:2: Virtualservice default/r: kind: unknown kind Virtualservice, it has no effect: write VirtualService",
        ]),
        ("apiVersion: example.com/v1\nkind: Coffee\nmetadata: {name: r}\n".into(), vec![
            "warning: f.yaml:2: Coffee default/r: kind: unknown kind Coffee of example.com/v1, it has no effect: check kind and apiVersion",
        ]),
        ("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: r}\n".into(), vec![
            "warning: f.yaml:2: EnvoyFilter default/r: kind: EnvoyFilter has no effect here: raw proxy patches are not supported: use the fields of the other kinds",
        ]),
        ("apiVersion: config.istio.io/v1alpha2\nkind: Rule\nmetadata: {name: r}\nspec: {}\n".into(), vec![
            "warning: f.yaml:2: Rule default/r: kind: unknown kind Rule of config.istio.io, it has no effect: write rule",
        ]),
        ("apiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: r}\nspec: [1]\n".into(), vec![
            "error: f.yaml:4: rule default/r: spec: wrong type: expected a mapping",
        ]),
        ("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mtls: {mode: strict}\n".into(), vec![
            "error: f.yaml:5: PeerAuthentication default/p: spec.mtls.mode: unknown value strict, expected one of UNSET, DISABLE, PERMISSIVE, STRICT",
        ]),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: http\n".into(), vec![
            "error: f.yaml:6: Service default/s: spec.ports[0].port: wrong type: string \"http\", expected a whole number: remove the quotes",
        ]),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: s, lables: {}}\nspec: {slector: {}}\nextra: 1\n".into(), vec![
            "warning: f.yaml:3: Service default/s: metadata.lables: unknown field, it has no effect: check its spelling and its place",
            "warning: f.yaml:4: Service default/s: spec.slector: unknown field, it has no effect: check its spelling and its place",
            "warning: f.yaml:5: Service default/s: extra: unknown field, it has no effect: check its spelling and its place",
        ]),
    ];
    for (text, want) in cases {
        assert_eq!(said(&text), want, "\n{text}");
    }
}

#[test]
fn one_bad_document_spoils_no_other() {
    let text = format!("{VS}{ROUTE}---\na: [\n---\n{}", VS.replace("name: r", "name: s") + ROUTE);
    let parsed = parse_text("f.yaml", &text);
    let names: Vec<_> = parsed.resources.iter().map(|r| r.meta().name.to_string()).collect();
    assert_eq!(names, ["r", "s"]);
    assert!(parsed.unreadable);
    let first = &parsed.diagnostics[0];
    assert!(first.why.starts_with("not valid yaml: "), "{first}");
    assert!((9..=10).contains(&first.origin.line), "{first}");
}

#[test]
fn lists_of_any_kind_are_flattened() {
    for (head, item) in [
        ("apiVersion: v1\nkind: List\n", "apiVersion: v1, kind: Service, "),
        ("apiVersion: v1\nkind: ServiceList\n", ""),
        (
            "apiVersion: v1\nkind: ServiceList\nmetadata: {resourceVersion: \"1\"}\n",
            "apiVersion: v1, kind: Service, ",
        ),
    ] {
        let text = format!(
            "{head}items:\n- {{{item}metadata: {{name: a}}}}\n-\n- {{{item}metadata: {{name: b}}}}\n"
        );
        let parsed = parse_text("f.yaml", &text);
        let got: Vec<_> = parsed.resources.iter().map(|r| r.key().to_string()).collect();
        assert_eq!(got, ["Service default/a", "Service default/b"], "{text}: {:?}", parsed.diagnostics);
    }
    assert!(parse_text("f.yaml", "apiVersion: v1\nkind: List\nitems: []\n").resources.is_empty());
}

#[test]
fn json_and_odd_separators_read_like_yaml() {
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": null}}"#;
    for text in
        [json.to_owned(), format!("---\n--- # x\n{json}\n---\n"), format!("\u{feff}# c\r\n---\r\n{json}\r\n")]
    {
        let parsed = parse_text("f.json", &text);
        assert_eq!(parsed.resources.len(), 1, "{text}");
        assert_eq!(parsed.diagnostics, [], "{text}");
        assert_eq!(&*parsed.resources[0].meta().namespace, "", "a Namespace lives in none");
    }
}

#[test]
fn nulls_mean_the_same_as_nothing() {
    let full = format!(
        "{VS}  - match: null\n    timeout:\n    route: [{{destination: {{host: r, subset: null}}, weight: ~}}]\n  gateways:\nstatus: null\n"
    );
    let bare = format!("{VS}  - route: [{{destination: {{host: r}}}}]\n");
    let spec = |text: &str| match &parse_text("f", text).resources[..] {
        [Resource::VirtualService(vs)] => vs.spec.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(spec(&full), spec(&bare));
}

#[test]
fn a_secrets_string_data_is_folded_into_its_data() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: hi}\ndata: {b: eW8=}\n";
    let parsed = parse_text("f", text);
    let [Resource::Secret(secret)] = &parsed.resources[..] else { panic!("{parsed:?}") };
    let data = secret.spec.data.as_ref().expect("has data");
    assert_eq!((&*data["a"].0, &*data["b"].0), (&b"hi"[..], &b"yo"[..]));
    assert_eq!(parsed.diagnostics, []);
}

#[test]
fn timestamps_make_an_object_older_than_any_without() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: s, creationTimestamp: 2019-03-01T00:00:00Z, uid: u, generation: 3, resourceVersion: \"7\"}\n";
    let parsed = parse_text("f", text);
    let meta = parsed.resources[0].meta();
    assert_eq!((meta.age.created, meta.uid.as_deref(), meta.generation), (1_551_398_400, Some("u"), Some(3)));
    assert!(meta.age < Age::default());
}

mod never_panics {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn on_any_text(text in "\\PC*|([-:#\\[\\]{}&*!|>'\"%@`,? \t\r\n.a-c0-9]|---|\\.\\.\\.|kind: |\n  - ){0,200}") {
            parse_text("f", &text);
        }

        #[test]
        fn on_a_document_cut_anywhere(cut in 0usize..2000, flip in 0usize..2000, with in any::<char>()) {
            let mut text = format!("{VS}  - match:\n    - headers: {{a: {{regex: x}}}}\n    fault: {{abort: {{percent: 1, httpStatus: 500}}}}\n    route: [{{destination: {{host: r}}, weight: 3}}]\n---\napiVersion: v1\nkind: List\nitems: [{{apiVersion: v1, kind: Pod, metadata: {{name: p}}}}]\n");
            let at = |n: usize, text: &str| text.char_indices().map(|(i, _)| i).nth(n % text.chars().count().max(1)).unwrap_or(0);
            let i = at(flip, &text);
            text.insert(i, with);
            text.truncate(at(cut, &text));
            parse_text("f", &text);
        }
    }
}

#[test]
fn a_policy_with_a_hole_is_refused_rather_than_widened() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules:\n  - when:\n    -\n    from: [{source: {namespaces: [a]}}]\n";
    let parsed = parse_text("f", text);
    assert!(parsed.resources.is_empty());
    assert_eq!(parsed.refused[0].to_string(), "AuthorizationPolicy default/p");
}

#[test]
fn what_a_secret_holds_is_never_said() {
    for data in ["{a: 's3cret!'}", "{a: 31337}", "[s3cret]"] {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {data}\n");
        let said = said(&text).join("\n");
        assert!(said.contains("Secret default/s"), "{said}");
        assert!(!said.contains("s3cret") && !said.contains("31337"), "{said}");
    }
}

#[test]
fn an_object_as_json_reads_like_one_in_a_file() {
    let value = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "uid": "u"},
        "spec": {"ports": [{"port": 80}], "bogus": null, "wrong": 1}});
    let parsed = parse_json("kubernetes", &value);
    assert_eq!(parsed.resources.len(), 1);
    assert!(parsed.diagnostics[0].is_unknown() && !parsed.diagnostics[0].is_error());
    let said: Vec<_> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "kubernetes: Service default/s: spec.wrong: unknown field, it has no effect: check its spelling and its place"
        ]
    );
}
