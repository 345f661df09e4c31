//! One binary, one subcommand per service: what an image of the shop starts.
//!
//! In: flags or environment. Out: a server that ends on SIGTERM. Kept true: the same name in flag and environment.
//! Not here: the services themselves (library).

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
use espresso_shop::{agent, call::Call, catalog, client::Client, echo, reviews, serve, versioned, web};

/// The Espresso Shop's services, for trying out a mesh.
#[derive(Parser)]
#[command(version, about)]
struct Command {
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// The shop's pages. Asks the product catalog and the reviews.
    Web {
        #[command(flatten)]
        common: Common,
        /// Where the product catalog answers.
        #[arg(
            long,
            env = "ProductCatalogUrl",
            default_value = "http://espresso-shop-product-catalog-svc:8091"
        )]
        product_catalog_url: String,
        /// Where the reviews answer.
        #[arg(long, env = "ReviewsUrl", default_value = "http://espresso-shop-reviews-svc:8092")]
        reviews_url: String,
        /// HTTP proxy for calls to both, e.g. a sidecar: `http://127.0.0.1:15080`. Direct when empty.
        #[arg(long, env = "HTTP_PROXY", default_value = "")]
        http_proxy: String,
    },
    /// The six products, as JSON.
    ProductCatalog {
        #[command(flatten)]
        common: Common,
    },
    /// What guests say, as JSON. Version v2 knows stars.
    Reviews {
        #[command(flatten)]
        common: Common,
    },
    /// Answers with what it received; the query can ask it to wait or to fail.
    Echo {
        #[command(flatten)]
        common: Common,
        /// Status of every answer that the query does not decide.
        #[arg(long, env = "ECHO_STATUS", default_value_t = 200)]
        status: u16,
    },
    /// Sends requests from where it runs: one JSON object per line on standard input, one on standard output.
    ///
    /// `{"id":1,"call":{"url":"http://reviews:8092/api/version"}}` is answered with status, headers, body and time.
    Agent,
    /// Sends one GET at once, prints the answer's status and body, and ends: 0 for a status below 400.
    Get {
        /// `http://host[:port]/path`.
        url: String,
    },
    /// Sends GETs at a fixed rate and prints at the end, as one JSON object, how many were sent and what became of them.
    Load {
        /// `http://host[:port]/path`.
        url: String,
        /// Requests per second.
        #[arg(long, default_value_t = 20)]
        rate: u32,
        /// For how long.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Every n-th request has a connection of its own; 0 for never.
        #[arg(long, default_value_t = 4)]
        fresh_every: u32,
        /// The status that counts as success.
        #[arg(long, default_value_t = 200)]
        expect: u16,
    },
}

#[derive(Args)]
struct Common {
    /// Address to listen on.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:80")]
    listen: SocketAddr,
    /// Version that this copy says it is.
    #[arg(long, env = "SERVICE_VERSION")]
    service_version: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse().service {
        Service::Web { common, product_catalog_url, reviews_url, http_proxy } => {
            let client = Client::new(&http_proxy)?;
            let shop = web::Shop::new(client, &product_catalog_url, &reviews_url)?;
            serve(common.listen, versioned(web::router(shop), common.service_version.as_deref())).await
        }
        Service::ProductCatalog { common } => {
            let version = common.service_version;
            serve(common.listen, versioned(catalog::router(version.clone()), version.as_deref())).await
        }
        Service::Reviews { common } => {
            let version = common.service_version.unwrap_or_else(|| "v1".to_owned());
            serve(common.listen, versioned(reviews::router(&version), Some(&version))).await
        }
        Service::Agent => agent::run().await,
        Service::Get { url } => {
            let reply = Call::get(url).send().await?;
            println!("{} {}", reply.status, reply.body);
            anyhow::ensure!(reply.status < 400, "status {}", reply.status);
            Ok(())
        }
        Service::Load { url, rate, seconds, fresh_every, expect } => {
            let spec = agent::LoadSpec { url, rate, seconds, fresh_every, expect };
            println!("{}", serde_json::to_string(&agent::send_load(spec).await?)?);
            Ok(())
        }
        Service::Echo { common, status } => {
            let version = common.service_version;
            serve(common.listen, versioned(echo::router(version.clone(), status), version.as_deref())).await
        }
    }
}
