//! What one pod sets for itself, by annotations with Istio's names.
//!
//! In: a pod's annotations. Out: [`Wishes`], checked. Kept true: a list of ports or ranges that is not one fails the injection,
//! naming the annotation; what is known and not honoured becomes a warning. Not here: `sidecar.istio.io/inject` (`decide`).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::{
    InjectError,
    settings::{InterceptionMode, Settings},
};

/// Everything that a pod may decide, over the operator's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Wishes {
    /// Image of the proxy.
    pub image: String,
    /// Requests and limits of the proxy.
    pub resources: Value,
    /// How traffic reaches the proxy.
    pub interception_mode: InterceptionMode,
    /// The proxy is an init container that restarts.
    pub native: bool,
    /// Probes of the application are moved to the proxy's health port.
    pub rewrite_probes: bool,
    /// The proxy's health port; 0 for none.
    pub status_port: u16,
    /// Readiness probe: initial delay and period in seconds, failures until not ready.
    pub readiness: [u32; 3],
    /// Istio's ProxyConfig, merged.
    pub proxy_config: Map<String, Value>,
    /// Log level of the proxy.
    pub log_level: Option<String>,
    /// Names of the templates to apply.
    pub templates: Vec<String>,
    /// What is captured: variable of the init container and its value.
    pub capture: [(&'static str, String); 8],
    /// Volumes to add to the pod.
    pub volumes: Vec<Value>,
    /// Mounts to add to the proxy.
    pub mounts: Vec<Value>,
    /// Known annotations that change nothing here, and why.
    pub warnings: Vec<String>,
}

/// Capture annotations: name of the template's value, annotation, what the list holds, and whether `*` may stand for all.
const CAPTURE: [(&str, &str, Item, bool); 8] = [
    ("includeOutboundIPRanges", "traffic.sidecar.istio.io/includeOutboundIPRanges", Item::Range, true),
    ("excludeOutboundIPRanges", "traffic.sidecar.istio.io/excludeOutboundIPRanges", Item::Range, false),
    ("includeInboundPorts", "traffic.sidecar.istio.io/includeInboundPorts", Item::Port, true),
    ("excludeInboundPorts", "traffic.sidecar.istio.io/excludeInboundPorts", Item::Port, false),
    ("includeOutboundPorts", "traffic.sidecar.istio.io/includeOutboundPorts", Item::Port, false),
    ("excludeOutboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts", Item::Port, false),
    ("excludeInterfaces", "traffic.sidecar.istio.io/excludeInterfaces", Item::Interface, false),
    ("kubevirtInterfaces", "traffic.sidecar.istio.io/kubevirtInterfaces", Item::Interface, false),
];

/// Known to Istio, without effect here.
const WITHOUT_EFFECT: [(&str, &str); 6] = [
    ("sidecar.istio.io/bootstrapOverride", "the proxy has no Envoy bootstrap"),
    ("sidecar.istio.io/proxyImageType", "there is one kind of image"),
    ("sidecar.istio.io/componentLogLevel", "use sidecar.istio.io/logLevel, which takes target=level too"),
    ("sidecar.istio.io/agentLogLevel", "the proxy has no separate agent"),
    ("sidecar.istio.io/controlPlaneAuthPolicy", "the control plane is always reached over mTLS"),
    ("prometheus.istio.io/merge-metrics", "metrics of the application stay at its own port"),
];

#[derive(Clone, Copy)]
enum Item {
    Port,
    Range,
    Interface,
}

/// Reads and checks a pod's annotations.
///
/// # Errors
/// [`InjectError::Annotation`] for the first one whose value cannot be honoured.
pub fn read(annotations: &Map<String, Value>, settings: &Settings) -> Result<Wishes, InjectError> {
    let all = Annotations(annotations);
    let mut wishes = Wishes {
        image: all.text("sidecar.istio.io/proxyImage").unwrap_or(&settings.image).to_owned(),
        resources: resources(&all, settings)?,
        interception_mode: all.interception_mode(settings)?,
        native: all.boolean("sidecar.istio.io/nativeSidecar")?.unwrap_or(settings.native_sidecars),
        rewrite_probes: all
            .boolean("sidecar.istio.io/rewriteAppHTTPProbers")?
            .unwrap_or(settings.rewrite_app_http_probe),
        status_port: all.number("status.sidecar.istio.io/port")?.unwrap_or(settings.status_port),
        readiness: [
            all.number("readiness.status.sidecar.istio.io/initialDelaySeconds")?.unwrap_or(1),
            all.number("readiness.status.sidecar.istio.io/periodSeconds")?.unwrap_or(2),
            all.number("readiness.status.sidecar.istio.io/failureThreshold")?.unwrap_or(30),
        ],
        proxy_config: proxy_config(&all, settings)?,
        log_level: all.text("sidecar.istio.io/logLevel").map(str::to_owned),
        templates: all.text("inject.istio.io/templates").map_or_else(
            || vec!["sidecar".to_owned()],
            |t| t.split(',').map(|n| n.trim().to_owned()).collect(),
        ),
        capture: capture(&all, settings)?,
        volumes: named(&all, "sidecar.istio.io/userVolume")?,
        mounts: named(&all, "sidecar.istio.io/userVolumeMount")?,
        warnings: Vec::new(),
    };
    all.list("readiness.status.sidecar.istio.io/applicationPorts", Item::Port, false)?;
    for (name, why) in WITHOUT_EFFECT {
        if all.text(name).is_some() {
            wishes.warnings.push(format!("annotation {name} has no effect: {why}"));
        }
    }
    Ok(wishes)
}

struct Annotations<'a>(&'a Map<String, Value>);

impl Annotations<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    fn wrong(&self, name: &'static str, want: &str) -> InjectError {
        let value = self.text(name).unwrap_or_default().to_owned();
        InjectError::Annotation { name, value, want: want.to_owned() }
    }

    fn boolean(&self, name: &'static str) -> Result<Option<bool>, InjectError> {
        match self.text(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("") => Ok(None),
            Some("true" | "1" | "t") => Ok(Some(true)),
            Some("false" | "0" | "f") => Ok(Some(false)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    fn number<N: std::str::FromStr>(&self, name: &'static str) -> Result<Option<N>, InjectError> {
        let parsed = self.text(name).map(str::parse).transpose();
        parsed.map_err(|_| self.wrong(name, &format!("a whole number within {}", std::any::type_name::<N>())))
    }

    /// A comma-separated list, checked item by item; empty is a list of nothing.
    fn list(&self, name: &'static str, item: Item, all: bool) -> Result<Option<String>, InjectError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let items: Vec<_> = text.split(',').map(str::trim).filter(|i| !i.is_empty()).collect();
        if all && items == ["*"] {
            return Ok(Some("*".to_owned()));
        }
        let (fits, want): (fn(&str) -> bool, _) = match item {
            Item::Port => {
                (|i| i.parse::<u16>().is_ok_and(|p| p > 0), "ports from 1 to 65535, separated by commas")
            }
            Item::Range => (is_range, "IP ranges such as 10.0.0.0/8, separated by commas"),
            Item::Interface => (
                |i| i.len() < 16 && i.bytes().all(|b| b.is_ascii_graphic() && b != b'/'),
                "interface names of at most 15 characters, separated by commas",
            ),
        };
        match items.iter().all(|i| fits(i)) {
            true => Ok(Some(items.join(","))),
            false if all => Err(self.wrong(name, &format!("* or {want}"))),
            false => Err(self.wrong(name, want)),
        }
    }

    fn interception_mode(&self, settings: &Settings) -> Result<InterceptionMode, InjectError> {
        const NAME: &str = "sidecar.istio.io/interceptionMode";
        match self.text(NAME) {
            None => Ok(settings.interception_mode),
            Some("REDIRECT") => Ok(InterceptionMode::Redirect),
            Some("NONE") => Ok(InterceptionMode::None),
            Some(_) => Err(self.wrong(NAME, "REDIRECT or NONE")),
        }
    }
}

fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

fn capture(all: &Annotations<'_>, settings: &Settings) -> Result<[(&'static str, String); 8], InjectError> {
    let mut found = CAPTURE.map(|(key, ..)| (key, String::new()));
    for (slot, (key, name, item, star)) in found.iter_mut().zip(CAPTURE) {
        let usual = match key {
            "includeOutboundIPRanges" => settings.include_outbound_ip_ranges.as_str(),
            "excludeOutboundIPRanges" => &settings.exclude_outbound_ip_ranges,
            "includeInboundPorts" => &settings.include_inbound_ports,
            "excludeInboundPorts" => &settings.exclude_inbound_ports,
            _ => "",
        };
        slot.1 = all.list(name, item, star)?.unwrap_or_else(|| usual.to_owned());
    }
    Ok(found)
}

/// As in Istio: one resource annotation replaces all defaults, so that a request never stands above a forgotten limit.
fn resources(all: &Annotations<'_>, settings: &Settings) -> Result<Value, InjectError> {
    const NAMES: [(&str, &str, &str); 4] = [
        ("sidecar.istio.io/proxyCPU", "requests", "cpu"),
        ("sidecar.istio.io/proxyMemory", "requests", "memory"),
        ("sidecar.istio.io/proxyCPULimit", "limits", "cpu"),
        ("sidecar.istio.io/proxyMemoryLimit", "limits", "memory"),
    ];
    if NAMES.iter().all(|(name, ..)| all.text(name).is_none()) {
        return Ok(settings.resources.clone());
    }
    let mut asked = Map::new();
    for (name, group, key) in NAMES {
        let Some(quantity) = all.text(name) else { continue };
        let digits = quantity.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let known = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if digits.parse::<f64>().is_err() || !known.contains(&&quantity[digits.len()..]) {
            return Err(all.wrong(name, "a quantity such as 100m or 128Mi"));
        }
        let group = asked.entry(group).or_insert_with(|| json!({}));
        group[key] = json!(quantity);
    }
    Ok(Value::Object(asked))
}

fn proxy_config(all: &Annotations<'_>, settings: &Settings) -> Result<Map<String, Value>, InjectError> {
    const NAME: &str = "proxy.istio.io/config";
    let mut config = settings.proxy_config.clone();
    if let Some(address) = all.text("sidecar.istio.io/discoveryAddress") {
        config.insert("discoveryAddress".to_owned(), json!(address));
    }
    let Some(text) = all.text(NAME) else { return Ok(config) };
    match crate::yaml::read(text) {
        Ok(Value::Object(own)) => {
            for (key, value) in own {
                merge(config.entry(key).or_insert(Value::Null), value);
            }
            Ok(config)
        }
        Ok(Value::Null) => Ok(config),
        Ok(_) => Err(all.wrong(NAME, "a ProxyConfig: keys and values in YAML")),
        Err(why) => Err(all.wrong(NAME, &format!("a ProxyConfig in YAML ({why})"))),
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A list of named objects, written as JSON: a list, or an object whose keys are the names.
fn named(all: &Annotations<'_>, name: &'static str) -> Result<Vec<Value>, InjectError> {
    let Some(text) = all.text(name) else { return Ok(Vec::new()) };
    let wrong = || all.wrong(name, "JSON: a list of objects with names, or an object of objects");
    let list = match serde_json::from_str(text).map_err(|_| wrong())? {
        Value::Array(list) => list,
        Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| match value {
                Value::Object(mut fields) => {
                    fields.insert("name".to_owned(), json!(name));
                    Value::Object(fields)
                }
                other => other,
            })
            .collect(),
        _ => return Err(wrong()),
    };
    let good = list.iter().all(|v| v.get("name").is_some_and(Value::is_string));
    if good { Ok(list) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<Wishes, InjectError> {
        read(&Map::from_iter([(name.to_owned(), json!(value))]), &Settings::default())
    }

    #[test]
    fn values_that_cannot_be_honoured_fail_and_name_the_annotation() {
        let traffic = "traffic.sidecar.istio.io/";
        let cases = [
            (format!("{traffic}includeInboundPorts"), "80,http"),
            (format!("{traffic}includeInboundPorts"), "*,80"),
            (format!("{traffic}excludeInboundPorts"), "*"),
            (format!("{traffic}excludeInboundPorts"), "80,70000"),
            (format!("{traffic}excludeInboundPorts"), "0"),
            (format!("{traffic}includeOutboundIPRanges"), "10.0.0.0/33"),
            (format!("{traffic}includeOutboundIPRanges"), "10.0.0.0"),
            (format!("{traffic}excludeOutboundIPRanges"), "bad"),
            (format!("{traffic}excludeOutboundIPRanges"), "*"),
            (format!("{traffic}excludeOutboundPorts"), "bad"),
            (format!("{traffic}includeOutboundPorts"), "-1"),
            (format!("{traffic}excludeInterfaces"), "a-name-that-is-too-long"),
            ("status.sidecar.istio.io/port".into(), "65536"),
            ("readiness.status.sidecar.istio.io/periodSeconds".into(), "often"),
            ("readiness.status.sidecar.istio.io/applicationPorts".into(), "80;81"),
            ("sidecar.istio.io/interceptionMode".into(), "TPROXY"),
            ("sidecar.istio.io/nativeSidecar".into(), "perhaps"),
            ("sidecar.istio.io/proxyCPU".into(), "much"),
            ("sidecar.istio.io/userVolume".into(), "[{}]"),
            ("sidecar.istio.io/userVolumeMount".into(), "no json"),
            ("proxy.istio.io/config".into(), "- a"),
        ];
        for (name, value) in cases {
            let error = with(&name, value).expect_err(&format!("{name}: {value}")).to_string();
            assert!(error.contains(&name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn lists_may_hold_spaces_and_be_empty() {
        let capture = |name: &str, value: &str| {
            let wishes = with(&format!("traffic.sidecar.istio.io/{name}"), value).expect("good");
            wishes.capture.iter().find(|(key, _)| *key == name).expect("a known list").1.clone()
        };
        let cases = [
            ("includeOutboundIPRanges", "127.0.0.1/24, 10.96.0.1/24", "127.0.0.1/24,10.96.0.1/24"),
            ("includeOutboundIPRanges", "fd00::/8", "fd00::/8"),
            ("includeOutboundIPRanges", "", ""),
            ("includeInboundPorts", "*", "*"),
            ("includeInboundPorts", "", ""),
            ("excludeInboundPorts", "4,5,6", "4,5,6"),
            ("excludeInterfaces", "eth1, net0", "eth1,net0"),
        ];
        for (name, value, want) in cases {
            assert_eq!(capture(name, value), want, "{name}: {value:?}");
        }
        assert_eq!(with("other", "x").expect("good").capture[0].1, "*");
    }

    #[test]
    fn one_resource_annotation_replaces_all_defaults() {
        let got = with("sidecar.istio.io/proxyCPULimit", "500m").expect("good").resources;
        assert_eq!(got, json!({ "limits": { "cpu": "500m" } }));
    }

    #[test]
    fn a_pods_proxy_config_is_laid_over_the_mesh_wide_one() {
        let got = with("proxy.istio.io/config", "concurrency: 1\ntracing: {sampling: 100}\n").expect("good");
        let want = json!({ "discoveryAddress": "pilot.istio-system.svc:15012", "concurrency": 1, "tracing": { "sampling": 100 } });
        assert_eq!(Value::Object(got.proxy_config), want);
    }

    #[test]
    fn volumes_may_be_a_map_or_a_list() {
        for text in [r#"{"v":{"emptyDir":{}}}"#, r#"[{"emptyDir":{},"name":"v"}]"#] {
            let got = with("sidecar.istio.io/userVolume", text).expect("good").volumes;
            assert_eq!(got, [json!({ "emptyDir": {}, "name": "v" })]);
        }
    }

    #[test]
    fn what_is_known_and_not_honoured_is_said() {
        let warnings = with("sidecar.istio.io/bootstrapOverride", "cm").expect("good").warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("bootstrapOverride"), "{warnings:?}");
    }
}
