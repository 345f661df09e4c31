//! The shop's front: asks the catalog and the reviews, and makes pages of what they say.
//!
//! In: browsers' requests. Out: HTML. Kept true: a failing backend costs its part of the page, never the page; trace headers and the
//! logged-in user go on to both backends. Not here: how pages look (`pages`), how calls are made (`client`).

use std::sync::Arc;

use anyhow::{Context, ensure};
use axum::{
    Form, Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    VERSION_HEADER,
    catalog::Product,
    client::Client,
    pages::{self, Part},
    session::{Sessions, User},
};

/// Taken from the request being served and set on every call made for it.
const PASSED_ON: [&str; 8] = [
    "user-agent",
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
];

/// The web service's state.
#[derive(Debug, Clone)]
pub struct Shop {
    client: Client,
    catalog: Arc<str>,
    reviews: Arc<str>,
    sessions: Sessions,
}

impl Shop {
    /// A shop whose backends answer at these base URLs.
    ///
    /// # Errors
    /// When one of them is not an `http://` URL.
    pub fn new(client: Client, catalog: &str, reviews: &str) -> anyhow::Result<Self> {
        for (name, url) in [("ProductCatalogUrl", catalog), ("ReviewsUrl", reviews)] {
            let uri: Uri = url.parse().with_context(|| format!("{name} {url:?} is not a URL"))?;
            ensure!(uri.scheme_str() == Some("http"), "{name} {url:?} must begin with http://");
        }
        let base = |url: &str| Arc::from(url.trim_end_matches('/'));
        Ok(Self { client, catalog: base(catalog), reviews: base(reviews), sessions: Sessions::default() })
    }

    /// One backend's JSON, or the sentence that the page shows instead.
    async fn fetch<T: DeserializeOwned>(&self, url: String, headers: HeaderMap) -> Part<(T, Option<String>)> {
        let url: Uri = url.parse().map_err(|_| "the backend's address is wrong".to_owned())?;
        let answer = self.client.get(url, headers).await.map_err(|e| {
            eprintln!("{e:#}");
            "the backend does not answer".to_owned()
        })?;
        if !answer.status.is_success() {
            let said = String::from_utf8_lossy(&answer.body);
            let said: String = said.trim().chars().take(200).collect();
            return Err(format!("the backend answered {}: {said}", answer.status.as_u16()));
        }
        let version = answer.headers.get(VERSION_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let found =
            serde_json::from_slice(&answer.body).map_err(|_| "the backend answered nonsense".to_owned())?;
        Ok((found, version))
    }

    fn user(&self, headers: &HeaderMap) -> Option<User> {
        self.sessions.user(&cookies(headers))
    }
}

/// The service's routes.
pub fn router(shop: Shop) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/Home/Product/{id}", get(product))
        .route("/Account/Login", get(login_form).post(login))
        .route("/Account/Logout", get(logout).post(logout))
        .with_state(shop)
}

async fn home(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    let user = shop.user(&headers);
    let onward = onward(&headers, user.as_ref());
    let products = shop.fetch::<Vec<Product>>(format!("{}/api/products", shop.catalog), onward).await;
    let html = pages::home(&products.map(|(list, _)| list), user.as_ref());
    traced(&headers, Html(html).into_response())
}

async fn product(State(shop): State<Shop>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Ok(id) = id.parse::<u32>() else {
        return traced(&headers, (StatusCode::NOT_FOUND, "no such product").into_response());
    };
    let user = shop.user(&headers);
    let onward = onward(&headers, user.as_ref());
    let (product, reviews) = tokio::join!(
        shop.fetch::<Product>(format!("{}/api/products/{id}", shop.catalog), onward.clone()),
        shop.fetch(format!("{}/api/reviews/{id}", shop.reviews), onward),
    );
    let product = product.map(|(product, _)| product);
    let reviews = reviews.map(|(list, version)| pages::Reviews { list, version });
    traced(&headers, Html(pages::product(id, &product, &reviews, user.as_ref())).into_response())
}

async fn login_form(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    let html = pages::login(false, shop.user(&headers).as_ref());
    traced(&headers, Html(html).into_response())
}

#[derive(Debug, Deserialize)]
struct Login {
    #[serde(alias = "Email")]
    email: String,
}

async fn login(State(shop): State<Shop>, headers: HeaderMap, Form(form): Form<Login>) -> Response {
    let response = match shop.sessions.login(&form.email) {
        Some(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        None => Html(pages::login(true, None)).into_response(),
    };
    traced(&headers, response)
}

async fn logout(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    let cookie = shop.sessions.logout(&cookies(&headers));
    traced(&headers, ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}

/// Headers for the calls made while serving `request`.
fn onward(request: &HeaderMap, user: Option<&User>) -> HeaderMap {
    let mut onward = HeaderMap::new();
    for name in PASSED_ON {
        for value in request.get_all(name) {
            onward.append(HeaderName::from_static(name), value.clone());
        }
    }
    if let Some(user) = user {
        for (name, value) in [("username", user.name), ("useremail", user.email), ("userrole", user.role)] {
            onward.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    onward
}

/// Tells the browser which trace its request was part of.
fn traced(request: &HeaderMap, mut response: Response) -> Response {
    if let Some(trace) = request.get("x-b3-traceid") {
        response.headers_mut().insert("x-b3-traceid", trace.clone());
        response.headers_mut().insert("x-request-id", trace.clone());
    }
    response
}

fn cookies(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    values.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{catalog, echo, reviews};

    async fn start(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    async fn ask(shop: &Router, request: Request<Body>) -> (HeaderMap, String) {
        let response = shop.clone().oneshot(request).await.expect("routers do not fail");
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (headers, String::from_utf8_lossy(&body).into_owned())
    }

    fn get(path: &str) -> Request<Body> {
        Request::get(path).header("x-b3-traceid", "abc").body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn a_product_page_shows_product_and_reviews_side_by_side() {
        let catalog = start(catalog::router(None)).await;
        let reviews = start(crate::versioned(reviews::router("v2"), Some("v2"))).await;
        let shop = router(Shop::new(Client::new("").expect("direct"), &catalog, &reviews).expect("URLs"));
        let (headers, page) = ask(&shop, get("/Home/Product/1")).await;
        assert!(page.contains("Flat White") && page.contains("★") && page.contains(">v2<"), "{page}");
        assert_eq!(
            (&headers["x-b3-traceid"], &headers["x-request-id"]),
            (&HeaderValue::from_static("abc"), &HeaderValue::from_static("abc"))
        );
        assert!(ask(&shop, get("/")).await.1.contains("Piccolo"));
    }

    #[tokio::test]
    async fn a_failing_backend_costs_only_its_part_of_the_page() {
        let catalog = start(catalog::router(None)).await;
        for (reviews, why) in [
            (start(echo::router(None, 500)).await, "answered 500"),
            (start(echo::router(None, 200)).await, "nonsense"),
            ("http://127.0.0.1:1".to_owned(), "does not answer"),
        ] {
            let shop = router(Shop::new(Client::new("").expect("direct"), &catalog, &reviews).expect("URLs"));
            let (_, page) = ask(&shop, get("/Home/Product/1")).await;
            assert!(
                page.contains("Flat White") && page.contains("reviews-unavailable") && page.contains(why),
                "{page}"
            );
        }
    }

    #[tokio::test]
    async fn a_login_is_passed_on_with_the_trace_headers() {
        let sessions = Sessions::default();
        let cookie = sessions.login("admin@example.com").expect("a known guest");
        let user = sessions.user(&cookie);
        let mut request = HeaderMap::new();
        for name in PASSED_ON {
            request.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        request.insert(header::ACCEPT, HeaderValue::from_static("text/html"));
        let onward = onward(&request, user.as_ref());
        let names: Vec<_> = onward.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, [&PASSED_ON[..], &["username", "useremail", "userrole"]].concat());
        assert_eq!(onward["userrole"], "Administrator");
    }

    #[tokio::test]
    async fn logging_in_sets_a_cookie_and_out_removes_it() {
        let shop = Shop::new(Client::new("").expect("direct"), "http://a", "http://b").expect("URLs");
        let shop = router(shop);
        let form = Request::post("/Account/Login")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from("email=admin%40example.com&password=x"))
            .expect("a request");
        let (headers, _) = ask(&shop, form).await;
        assert!(headers["set-cookie"].to_str().expect("text").starts_with("espresso-session="));
        let (headers, _) = ask(&shop, get("/Account/Logout")).await;
        assert!(headers["set-cookie"].to_str().expect("text").contains("Max-Age=0"));
    }
}
