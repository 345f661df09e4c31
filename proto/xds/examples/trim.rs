//! Makes `descriptors.bin`: Envoy's descriptor set cut down to the messages that this proxy reads.
//!
//! In: a full descriptor set (`envoy-types` ships one as `src/generated/types.bin`). Out: the trimmed set.
//! Kept true: the closure of every root is complete; options and source notes are dropped. Not here: using it (`xds::reflect`).
//!
//! Run: `cargo run -p xds --example trim -- TYPES.bin proto/xds/descriptors.bin`

use std::{
    collections::{BTreeSet, VecDeque},
    env, fs,
};

use prost::Message;
use prost_reflect::{
    DescriptorPool,
    prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet},
};

const ROOTS: &[&str] = &[
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.service.discovery.v3.DiscoveryResponse",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.network.rbac.v3.RBAC",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [from, to] = &arguments[..] else { return Err("usage: trim TYPES.bin OUT.bin".into()) };
    let full = FileDescriptorSet::decode(&*fs::read(from)?)?;
    let pool = DescriptorPool::from_file_descriptor_set(full.clone())?;
    let keep = closure(&pool)?;
    let mut files: Vec<FileDescriptorProto> =
        full.file.into_iter().filter_map(|file| trim(file, &keep)).collect();
    let names: BTreeSet<String> = files.iter().map(|file| file.name().to_owned()).collect();
    for file in &mut files {
        file.dependency.retain(|dependency| names.contains(dependency));
        file.public_dependency.clear();
        file.weak_dependency.clear();
    }
    let bytes = FileDescriptorSet { file: files }.encode_to_vec();
    DescriptorPool::decode(&*bytes)?;
    fs::write(to, &bytes)?;
    println!("{} messages and enums, {} bytes", keep.len(), bytes.len());
    Ok(())
}

/// Full names of every message and enum that a root reaches.
fn closure(pool: &DescriptorPool) -> Result<BTreeSet<String>, String> {
    let (mut keep, mut queue) = (BTreeSet::new(), VecDeque::new());
    for root in ROOTS {
        queue.push_back(pool.get_message_by_name(root).ok_or_else(|| format!("no message {root}"))?);
    }
    while let Some(message) = queue.pop_front() {
        if !keep.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            match field.kind() {
                prost_reflect::Kind::Message(inner) => queue.push_back(inner),
                prost_reflect::Kind::Enum(inner) => {
                    keep.insert(inner.full_name().to_owned());
                }
                _ => {}
            }
        }
    }
    Ok(keep)
}

fn trim(mut file: FileDescriptorProto, keep: &BTreeSet<String>) -> Option<FileDescriptorProto> {
    let package = file.package().to_owned();
    file.message_type =
        file.message_type.into_iter().filter_map(|m| trim_message(m, &package, keep)).collect();
    file.enum_type.retain(|e| keep.contains(&format!("{package}.{}", e.name())));
    file.enum_type.iter_mut().for_each(plain_enum);
    file.service.clear();
    file.extension.clear();
    file.options = None;
    file.source_code_info = None;
    (!file.message_type.is_empty() || !file.enum_type.is_empty()).then_some(file)
}

fn trim_message(
    mut message: DescriptorProto,
    scope: &str,
    keep: &BTreeSet<String>,
) -> Option<DescriptorProto> {
    let name = format!("{scope}.{}", message.name());
    message.nested_type =
        message.nested_type.into_iter().filter_map(|m| trim_message(m, &name, keep)).collect();
    message.enum_type.retain(|e| keep.contains(&format!("{name}.{}", e.name())));
    message.enum_type.iter_mut().for_each(plain_enum);
    let kept = keep.contains(&name);
    if !kept {
        if message.nested_type.is_empty() && message.enum_type.is_empty() {
            return None;
        }
        // Only a name for what is inside it.
        message.field.clear();
        message.oneof_decl.clear();
    }
    for field in &mut message.field {
        // `packed` and friends are proto3's defaults; the rest of the options is validation and notes.
        field.options = None;
    }
    for oneof in &mut message.oneof_decl {
        oneof.options = None;
    }
    message.extension.clear();
    let map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
    message.options = map_entry
        .then(|| prost_reflect::prost_types::MessageOptions { map_entry: Some(true), ..Default::default() });
    Some(message)
}

fn plain_enum(one: &mut EnumDescriptorProto) {
    let alias = one.options.as_ref().is_some_and(|o| o.allow_alias());
    one.options = alias
        .then(|| prost_reflect::prost_types::EnumOptions { allow_alias: Some(true), ..Default::default() });
    for value in &mut one.value {
        value.options = None;
    }
}
