//! The product catalog: six coffees.
//!
//! In: `GET /api/products[/{id}]`, `GET /api/version`. Out: JSON. Kept true: ids are 1 to 6 and never change.
//! Not here: pictures (`picture`), which the web service draws from a product's name.

use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

/// One thing to drink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// 1 to 6.
    pub id: u32,
    /// What is on the card.
    pub name: String,
    /// One or two sentences.
    pub description: String,
}

const CARD: [(&str, &str); 6] = [
    (
        "Flat White",
        "A double shot under a thin, glossy coat of steamed milk. Strong, and still soft at the edges.",
    ),
    ("Latte", "One shot, a tall glass of warm milk, a finger of foam. For people who came to talk."),
    ("Macchiato", "Espresso with a spot of foam on it: the barista's mark, and nothing more."),
    ("Cappuccino", "A third coffee, a third milk, a third foam, and cocoa if you ask nicely."),
    ("Espresso", "Thirty millilitres, twenty-five seconds, nine bar. The one all the others start from."),
    ("Piccolo", "A ristretto in a small glass, topped with just enough milk to round it off."),
];

/// All products, by id.
#[must_use]
pub fn products() -> Vec<Product> {
    (1..)
        .zip(CARD)
        .map(|(id, (name, description))| Product { id, name: name.into(), description: description.into() })
        .collect()
}

/// The service's routes.
pub fn router(version: Option<String>) -> Router {
    Router::new()
        .route("/api/products", get(|| async { Json(products()) }))
        .route("/api/products/{id}", get(one))
        .route("/api/version", get(|| async { version.unwrap_or_else(|| "v1".to_owned()) }))
}

async fn one(Path(id): Path<String>) -> Response {
    match products().into_iter().find(|p| p.id.to_string() == id) {
        Some(product) => Json(product).into_response(),
        None => (StatusCode::NOT_FOUND, "no such product").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_has_six_coffees_numbered_from_one() {
        let names: Vec<_> = products().into_iter().map(|p| (p.id, p.name.to_lowercase())).collect();
        let want = ["flat white", "latte", "macchiato", "cappuccino", "espresso", "piccolo"];
        assert_eq!(names, (1..).zip(want.map(str::to_owned)).collect::<Vec<_>>());
    }
}
