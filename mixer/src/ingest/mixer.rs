//! `istio.mixer.v1`: Check and Report, as proxies of Istio 1.x speak them.
//!
//! In: compressed attributes. Out: verdicts with the attributes they depend on; reports handed out.
//! Kept true: a report is acknowledged when it is queued, not when it is exported; where mixer knows pods, workload
//! attributes on the wire count for nothing. Not here: the encoding (`mixer-api`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use mixer_api::{
    codec::{self, Attributes, CodecError, Encoder, WireValue},
    rpc,
    v1::{
        CheckRequest, CheckResponse, HeaderOperation, ReferencedAttributes, ReportRequest, ReportResponse,
        RouteDirective,
        check_response::{PreconditionResult, QuotaResult},
        header_operation::Operation,
        mixer_server::Mixer as MixerApi,
        referenced_attributes::{AttributeMatch, Condition as WireCondition},
    },
};
use tonic::{Request, Response, Status};

use super::speaks_for;
use crate::{
    attributes::{Bag, Builtin, Text, Timestamp, Value, ValueType, Vocabulary},
    config::{Generation, HeaderChange},
    core::Mixer,
    dispatch::Feed,
    lang::{Condition, References},
};

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct MixerService(pub Arc<Mixer>);

fn refuse(error: &CodecError) -> Status {
    match error {
        // The client answers this by using the words all releases share.
        CodecError::Dictionary { .. } => Status::internal(error.to_string()),
        CodecError::UnknownWord(_) => Status::invalid_argument(error.to_string()),
    }
}

/// Attributes by name as a bag; what the vocabulary lacks, or types otherwise, is left out.
#[must_use]
pub fn bag(attributes: Attributes, generation: &Generation) -> Bag {
    let mut bag = Bag::new(&generation.vocabulary);
    for (name, value) in attributes {
        let Some(id) = generation.vocabulary.id(&name) else { continue };
        let nanos = |nanos: i128| i64::try_from(nanos).unwrap_or(i64::MAX);
        let value = match value {
            WireValue::String(text) => match generation.vocabulary.kind(id) {
                ValueType::EmailAddress => Value::Email(text.into()),
                ValueType::Uri => Value::Uri(text.into()),
                ValueType::DnsName => Value::Dns(text.into()),
                _ => Value::text(text),
            },
            WireValue::Int64(number) => Value::Int64(number),
            WireValue::Double(number) => Value::Double(number),
            WireValue::Bool(truth) => Value::Bool(truth),
            WireValue::Timestamp(since) => Value::Timestamp(Timestamp(nanos(since))),
            WireValue::Duration(length) => Value::Duration(nanos(length)),
            WireValue::Bytes(bytes) => {
                if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
                    Value::ip(v4.into())
                } else if let Ok(v6) = <[u8; 16]>::try_from(bytes.as_slice()) {
                    Value::ip(v6.into())
                } else {
                    continue;
                }
            }
            WireValue::StringMap(map) => Value::StringMap(map.into_iter().collect()),
        };
        bag.set(id, value);
    }
    bag
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn referenced(references: &References, vocabulary: &Vocabulary) -> ReferencedAttributes {
    let mut words = Encoder::default();
    let attribute_matches = references.list().iter().map(|reference| AttributeMatch {
        name: words.word(vocabulary.name(reference.id)),
        condition: match reference.condition {
            Condition::Exact => WireCondition::Exact,
            Condition::Absence => WireCondition::Absence,
        }
        .into(),
        regex: String::new(),
        map_key: reference.key.as_ref().map_or(0, |key| words.word(key)),
    });
    let attribute_matches = attribute_matches.collect();
    ReferencedAttributes { words: words.into_words(), attribute_matches }
}

fn operations(changes: &[(String, HeaderChange, Text)]) -> Vec<HeaderOperation> {
    let operation = |change: &HeaderChange| match change {
        HeaderChange::Replace => Operation::Replace,
        HeaderChange::Remove => Operation::Remove,
        HeaderChange::Append => Operation::Append,
    };
    changes
        .iter()
        .map(|(name, change, value)| HeaderOperation {
            name: name.clone(),
            value: value.to_string(),
            operation: operation(change).into(),
        })
        .collect()
}

#[tonic::async_trait]
impl MixerApi for MixerService {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        codec::check_word_count(request.global_word_count).map_err(|error| refuse(&error))?;
        let attributes =
            codec::decode(&request.attributes.unwrap_or_default()).map_err(|error| refuse(&error))?;
        let generation = self.0.generation();
        let mut bag = bag(attributes, &generation);
        let verdict = self.0.check(&generation, &mut bag);
        let mut quotas = HashMap::new();
        if verdict.code == 0 {
            for (name, params) in request.quotas {
                let id = &request.deduplication_id;
                let (result, references) =
                    self.0.quota(&generation, &bag, &name, params.amount, params.best_effort, id);
                quotas.insert(
                    name,
                    QuotaResult {
                        valid_duration: Some(duration(result.valid_for)),
                        granted_amount: result.granted,
                        referenced_attributes: Some(referenced(&references, &generation.vocabulary)),
                    },
                );
            }
        }
        let directive = !verdict.request_headers.is_empty() || !verdict.response_headers.is_empty();
        let precondition = PreconditionResult {
            status: Some(rpc::Status { code: verdict.code, message: verdict.message, details: Vec::new() }),
            valid_duration: Some(duration(verdict.valid_for)),
            valid_use_count: verdict.valid_uses,
            referenced_attributes: Some(referenced(&verdict.references, &generation.vocabulary)),
            route_directive: directive.then(|| RouteDirective {
                request_header_operations: operations(&verdict.request_headers),
                response_header_operations: operations(&verdict.response_headers),
                ..Default::default()
            }),
        };
        Ok(Response::new(CheckResponse { precondition: Some(precondition), quotas }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let bags = codec::decode_report(request.get_ref()).map_err(|error| refuse(&error))?;
        let generation = self.0.generation();
        let mut dropped = 0;
        for attributes in bags {
            let bag = bag(attributes, &generation);
            if let Some(uid) = bag.text(Builtin::ContextReporterUid) {
                speaks_for(request.extensions(), uid, &generation.workloads)?;
            }
            let (_, sound) = self.0.report(&generation, bag, Feed::All);
            dropped += usize::from(!sound);
        }
        if dropped > 0 {
            return Err(Status::unknown(format!(
                "{dropped} bags had instances that could not be evaluated; mixer's debug log names them"
            )));
        }
        Ok(Response::new(ReportResponse {}))
    }
}
