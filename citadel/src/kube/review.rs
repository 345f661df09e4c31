//! Tokens checked by the API server: it alone knows which pods and accounts still exist.
//!
//! In: a token. Out: the service account that it proves, for our audience. Kept true: no answer in time is no identity, and is said as
//! something to try again. Not here: what a service account may have (`serve`).

use std::time::Duration;

use futures::future::BoxFuture;
use mesh_kube::{
    k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    kube::{Api, Client, api::PostParams},
};

use crate::{
    caller::{ServiceAccount, TokenVerifier},
    refusal::Refusal,
};

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the API server.
#[derive(Clone)]
pub struct Reviews {
    api: Api<TokenReview>,
    audiences: Vec<String>,
}

impl Reviews {
    /// Tokens must have one of these audiences.
    #[must_use]
    pub fn new(client: Client, audiences: Vec<String>) -> Self {
        Self { api: Api::all(client), audiences }
    }

    async fn review(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(self.audiences.clone()) },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let asked = tokio::time::timeout(PATIENCE, self.api.create(&params, &review)).await;
        let unable = |why: &dyn std::fmt::Display| {
            Refusal::Unable(format!("the API server cannot be asked about the token: {why}"))
        };
        let answer = asked.map_err(|_| unable(&"no answer"))?.map_err(|e| unable(&e))?;
        judge(&answer.status.unwrap_or_default(), &self.audiences)
    }
}

impl TokenVerifier for Reviews {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, Refusal>> {
        Box::pin(self.review(token))
    }
}

/// An API server that ignores audiences answers without any: then it has not checked them.
fn judge(status: &TokenReviewStatus, audiences: &[String]) -> Result<ServiceAccount, Refusal> {
    if status.authenticated != Some(true) {
        return Err(Refusal::TokenRejected);
    }
    let granted = status.audiences.as_deref().unwrap_or_default();
    if !granted.iter().any(|audience| audiences.contains(audience)) {
        return Err(Refusal::TokenAudience(audiences.join("` or `")));
    }
    let user = status.user.as_ref().and_then(|user| user.username.as_deref());
    ServiceAccount::from_subject(user.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_kube::k8s_openapi::api::authentication::v1::UserInfo;

    #[test]
    fn only_an_authenticated_service_account_for_our_audience_is_somebody() {
        let ours = ["istio-ca".to_owned()];
        let status = |authenticated, audiences: &[&str], user: &str| TokenReviewStatus {
            authenticated,
            audiences: Some(audiences.iter().map(|a| (*a).to_owned()).collect()),
            user: Some(UserInfo { username: Some(user.to_owned()), ..UserInfo::default() }),
            ..TokenReviewStatus::default()
        };
        let web = "system:serviceaccount:shop:web";
        let cases = [
            ("good", status(Some(true), &["istio-ca"], web), "shop/web"),
            ("one of several audiences", status(Some(true), &["api", "istio-ca"], web), "shop/web"),
            ("not authenticated", status(Some(false), &["istio-ca"], web), "token_rejected"),
            ("no answer", TokenReviewStatus::default(), "token_rejected"),
            ("another audience", status(Some(true), &["vault"], web), "token_audience"),
            ("audiences not checked", status(Some(true), &[], web), "token_audience"),
            ("a person", status(Some(true), &["istio-ca"], "admin"), "token_subject"),
            ("a node", status(Some(true), &["istio-ca"], "system:node:n1"), "token_subject"),
        ];
        for (what, status, want) in cases {
            let got = match judge(&status, &ours) {
                Ok(account) => format!("{}/{}", account.namespace, account.name),
                Err(refusal) => refusal.label().to_owned(),
            };
            assert_eq!(got, want, "{what}");
        }
    }
}
