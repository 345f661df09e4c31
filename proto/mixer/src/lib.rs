//! `istio.mixer.v1`, the protocol between Istio 1.x proxies and Mixer.
//!
//! In: our own text of the .proto. Out: prost messages, tonic client and server, attribute codec.
//! Kept true: field numbers and word order are Istio's. Not here: what attributes mean (`mixer::attributes`).

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    pub mod google {
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
    }
    pub mod istio {
        pub mod mixer {
            pub mod v1 {
                tonic::include_proto!("istio.mixer.v1");
            }
        }
    }
}

pub mod codec;
pub mod dictionary;
pub use generated::{google::rpc, istio::mixer::v1};
