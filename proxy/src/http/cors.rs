//! Cross-origin requests: preflights are answered here, other answers get their headers in the router.
//!
//! In: a route's [`Cors`] rules, a request. Out: an answer to a preflight, or header values. Kept true: an origin that no rule names gets
//! no permission. Not here: the browser's half.

use mesh_traffic::{
    Choice,
    route::{Action, Cors},
};

use super::{Flow, exchange::Exchange};
use crate::codec::{Head, Known, Method, Request, Response, StatusCode};

/// The rules of a route.
fn rules<'s>(choice: Option<&Choice<'s>>) -> Option<&'s Cors> {
    match &choice?.route.action {
        Action::Forward(forward) => forward.cors.as_deref(),
        Action::Redirect(_) | Action::Direct(_) => None,
    }
}

fn allowed(cors: &Cors, head: &Head) -> Option<String> {
    let origin = head.get_str(Known::Origin)?;
    let hit = cors.origins.iter().any(|rule| rule.matches(origin.as_bytes(), false));
    hit.then(|| origin.to_owned())
}

/// Answers a preflight that the rules know.
pub fn run(exchange: &Exchange, choice: Option<&Choice<'_>>, request: &Request) -> Flow {
    let Some(cors) = rules(choice) else { return Flow::Continue };
    let head = &request.head;
    let preflight = *head.method() == Method::OPTIONS && head.contains(Known::AccessControlRequestMethod);
    if !preflight || !head.contains(Known::Origin) {
        return Flow::Continue;
    }
    let Some(origin) = allowed(cors, head) else {
        if cors.forward_unmatched_preflights {
            return Flow::Continue;
        }
        return Flow::Reply(Response::new(StatusCode::OK));
    };
    exchange.detail("cors_response");
    let mut response = Response::new(StatusCode::OK);
    let out = &mut response.head;
    out.set(Known::AccessControlAllowOrigin, origin);
    for (name, value) in [
        (Known::AccessControlAllowMethods, &cors.methods),
        (Known::AccessControlAllowHeaders, &cors.headers),
        (Known::AccessControlMaxAge, &cors.max_age),
    ] {
        if !value.is_empty() {
            out.set(name, &**value);
        }
    }
    if cors.credentials {
        out.set(Known::AccessControlAllowCredentials, "true");
    }
    Flow::Reply(response)
}

/// Adds to an answer what the rules grant the request's origin.
pub fn grant(cors: &Cors, request: &Head, response: &mut Head) {
    let Some(origin) = allowed(cors, request) else { return };
    response.set(Known::AccessControlAllowOrigin, origin);
    if cors.credentials {
        response.set(Known::AccessControlAllowCredentials, "true");
    }
    if !cors.expose.is_empty() {
        response.set(Known::AccessControlExposeHeaders, &*cors.expose);
    }
}
