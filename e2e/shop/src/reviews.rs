//! What guests say about a product; the service that exists in two versions.
//!
//! In: `GET /api/reviews/{productId}`, `GET /api/version`. Out: a JSON list, or the version as text.
//! Kept true: v1 knows no stars; an even product id waits [`SLOW`] first, in every version.
//! Not here: any store; the two reviews are fixed.

use std::time::Duration;

use axum::{Json, Router, extract::Path, http::StatusCode, response::IntoResponse, routing::get};
use serde::{Deserialize, Serialize};

/// How long an even product id takes: long enough to make a timeout visible.
pub const SLOW: Duration = Duration::from_secs(6);

/// One guest's opinion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    /// The product it is about.
    pub product_id: u32,
    /// Who wrote it.
    pub reviewer: String,
    /// What they wrote.
    pub text: String,
    /// 1 to 5; v1 leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stars: Option<u8>,
}

fn reviews(product: u32, with_stars: bool) -> Vec<Review> {
    let all = [
        (1, "Mara", "Silky, and it never gets bitter towards the end of the cup.", 5),
        (1, "Jonas", "My morning starts when this is empty. A bigger cup, please.", 4),
    ];
    all.into_iter()
        .filter(|(id, ..)| *id == product)
        .map(|(id, who, text, stars)| Review {
            product_id: id,
            reviewer: who.to_owned(),
            text: text.to_owned(),
            stars: with_stars.then_some(stars),
        })
        .collect()
}

/// The service's routes, as `version` of it (`v1` has no stars).
pub fn router(version: &str) -> Router {
    let with_stars = version != "v1";
    let version = version.to_owned();
    Router::new()
        .route(
            "/api/reviews/{product}",
            get(move |Path(product): Path<String>| async move {
                let Ok(product) = product.parse::<u32>() else {
                    return (StatusCode::BAD_REQUEST, "a product id is a number").into_response();
                };
                if product % 2 == 0 {
                    tokio::time::sleep(SLOW).await;
                }
                Json(reviews(product, with_stars)).into_response()
            }),
        )
        .route("/api/version", get(|| async { version }))
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(version: &str, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router(version).oneshot(request).await.expect("routers do not fail");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn only_product_one_has_reviews_and_only_v2_has_stars() {
        let count = |body: &str| serde_json::from_str::<Vec<Review>>(body).expect("a list").len();
        let (_, v1) = ask("v1", "/api/reviews/1").await;
        let (_, v2) = ask("v2", "/api/reviews/1").await;
        assert_eq!((count(&v1), count(&v2)), (2, 2));
        assert!(!v1.contains("stars") && v2.contains("\"stars\":5"), "{v1} {v2}");
        assert_eq!(ask("v2", "/api/reviews/3").await.1, "[]");
        assert_eq!(ask("v2", "/api/reviews/x").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(ask("v2", "/api/version").await.1, "v2");
    }

    #[tokio::test(start_paused = true)]
    async fn an_even_product_id_waits_six_seconds() {
        for (id, want) in [(1, 0), (2, 6), (4, 6), (5, 0)] {
            let before = tokio::time::Instant::now();
            ask("v1", &format!("/api/reviews/{id}")).await;
            assert_eq!(before.elapsed().as_secs(), want, "product {id}");
        }
    }
}
