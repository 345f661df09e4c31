//! The shop's HTML.
//!
//! In: what the backends said, or that they failed. Out: whole pages. Kept true: every text from outside is escaped; no page needs
//! another request (styles and pictures are inside). Not here: where the data comes from (`web`).

use std::fmt::Write as _;

use crate::{catalog::Product, picture, reviews::Review, session::User};

/// A part of a page: what a backend gave, or the sentence to show instead.
pub type Part<T> = Result<T, String>;

/// Reviews, and the version of the service that gave them.
#[derive(Debug)]
pub struct Reviews {
    /// The reviews themselves.
    pub list: Vec<Review>,
    /// The `x-service-version` that came with them.
    pub version: Option<String>,
}

const STYLE: &str = "
:root{--ink:#2c1810;--soft:#7a5c48;--paper:#fbf6ef;--card:#fff;--line:#eadccb;--accent:#a4501f;--dark:#2b1a12}
*{box-sizing:border-box}body{margin:0;font:16px/1.55 system-ui,'Segoe UI',sans-serif;color:var(--ink);background:var(--paper)}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
header{background:linear-gradient(115deg,#2b1a12,#5a3018 70%,#8a4a1f);color:#fbeee0;padding:0 6vw}
header .bar{display:flex;gap:1.5rem;align-items:center;padding:1rem 0;flex-wrap:wrap}
header .brand{font:600 1.35rem Georgia,serif;color:#fff;letter-spacing:.02em;margin-right:auto}
header a{color:#f6d9bb}.hero{padding:2.2rem 0 2.8rem;max-width:40rem}.hero h1{font:500 2.5rem/1.15 Georgia,serif;margin:0 0 .5rem}
.hero p{margin:0;color:#f0d6bd}main{padding:2.2rem 6vw 4rem;max-width:1180px;margin:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1.4rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:16px;overflow:hidden;display:flex;flex-direction:column;transition:transform .15s,box-shadow .15s;color:inherit}
.card:hover{transform:translateY(-3px);box-shadow:0 10px 26px #5a301822;text-decoration:none}
.pic{background:radial-gradient(circle at 50% 35%,#8d5a35,#4a2a18);padding:.6rem}.pic svg{width:100%;height:11rem;display:block}
.card h2{font:600 1.2rem Georgia,serif;margin:1rem 1.2rem .25rem}.card p{margin:0 1.2rem 1.3rem;color:var(--soft)}
.two{display:grid;grid-template-columns:minmax(16rem,26rem) 1fr;gap:2.4rem;align-items:start}@media(max-width:760px){.two{grid-template-columns:1fr}}
.two .pic{border-radius:18px}.two .pic svg{height:17rem}h1.name{font:500 2.2rem Georgia,serif;margin:.2rem 0}
.review{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1rem 1.2rem;margin:.9rem 0}
.review blockquote{margin:.2rem 0 .4rem;font-family:Georgia,serif;font-size:1.08rem}.who{color:var(--soft);font-size:.92rem}
.stars{color:#d58a1f;letter-spacing:.12em;font-size:1.15rem}.badge{font:600 .75rem system-ui;background:#f1e2d0;color:#7a4a22;border-radius:99px;padding:.2rem .6rem;margin-left:.6rem;vertical-align:middle}
.gone{background:#fff4ef;border:1px dashed #d9896a;color:#8f3d1d;border-radius:14px;padding:1rem 1.2rem;margin:.9rem 0}
form.login{background:var(--card);border:1px solid var(--line);border-radius:16px;padding:1.6rem;max-width:25rem;display:grid;gap:.9rem}
form.login input{font:inherit;padding:.55rem .7rem;border:1px solid #d7c2ab;border-radius:9px;width:100%}
button{font:600 1rem system-ui;background:var(--accent);color:#fff;border:0;border-radius:9px;padding:.65rem 1rem;cursor:pointer}
footer{padding:1.4rem 6vw;color:var(--soft);border-top:1px solid var(--line);font-size:.9rem}
.steam{animation:rise 3.4s ease-in-out infinite;opacity:.55}@keyframes rise{50%{transform:translateY(-5px);opacity:.15}}
@media(prefers-reduced-motion:reduce){.steam{animation:none}}";

/// The first page: all products.
#[must_use]
pub fn home(products: &Part<Vec<Product>>, user: Option<&User>) -> String {
    let mut body = String::new();
    match products {
        Ok(products) => {
            body.push_str(r#"<section class="grid" id="products">"#);
            for p in products {
                write!(
                    body,
                    r#"<a class="card" href="/Home/Product/{}"><div class="pic">{}</div><h2>{}</h2><p>{}</p></a>"#,
                    p.id,
                    picture::svg(p.id),
                    escape(&p.name),
                    escape(&p.description)
                )
                .ok();
            }
            body.push_str("</section>");
        }
        Err(why) => gone(&mut body, "products", "Our card is not to hand right now.", why),
    }
    let hero = "<div class=\"hero\"><h1>Coffee, short and to the point.</h1><p>Six drinks, all from the same \
                machine. Pick one and see what others thought of it.</p></div>";
    page("Espresso Shop", hero, &body, user)
}

/// One product with its reviews.
#[must_use]
pub fn product(id: u32, product: &Part<Product>, reviews: &Part<Reviews>, user: Option<&User>) -> String {
    let mut body = String::from(r#"<div class="two">"#);
    write!(body, r#"<div class="pic">{}</div><div>"#, picture::svg(id)).ok();
    match product {
        Ok(p) => {
            let (name, text) = (escape(&p.name), escape(&p.description));
            write!(body, r#"<section id="product"><h1 class="name">{name}</h1><p>{text}</p></section>"#).ok();
        }
        Err(why) => gone(&mut body, "product", "We cannot find the card for this cup right now.", why),
    }
    match reviews {
        Ok(found) => {
            let badge =
                found.version.as_deref().map(|v| format!(r#"<span class="badge">{}</span>"#, escape(v)));
            write!(body, r#"<section id="reviews"><h2>What guests say{}</h2>"#, badge.unwrap_or_default())
                .ok();
            if found.list.is_empty() {
                body.push_str("<p class=\"who\">Nobody has said anything yet.</p>");
            }
            for review in &found.list {
                one_review(&mut body, review);
            }
            body.push_str("</section>");
        }
        Err(why) => gone(&mut body, "reviews", "Reviews are unavailable at the moment.", why),
    }
    body.push_str("</div></div>");
    let title = product.as_ref().map_or("Espresso Shop", |p| p.name.as_str());
    page(title, "", &body, user)
}

fn one_review(body: &mut String, review: &Review) {
    let stars = review.stars.map(|n| {
        let n = usize::from(n.min(5));
        let drawn = format!("{}{}", "★".repeat(n), "☆".repeat(5 - n));
        format!(r#"<div class="stars" aria-label="{n} of 5 stars">{drawn}</div>"#)
    });
    write!(
        body,
        r#"<article class="review">{}<blockquote>{}</blockquote><div class="who">{}</div></article>"#,
        stars.unwrap_or_default(),
        escape(&review.text),
        escape(&review.reviewer)
    )
    .ok();
}

/// The login form; `wrong` after an email that nobody has.
#[must_use]
pub fn login(wrong: bool, user: Option<&User>) -> String {
    let note = if wrong {
        "<div class=\"gone\">Nobody here goes by that address. Try admin@example.com or hossam@example.com.</div>"
    } else {
        ""
    };
    let body = format!(
        "<h1 class=\"name\">Come in</h1>{note}<form class=\"login\" method=\"post\" action=\"/Account/Login\">\
         <label>Email<input name=\"email\" type=\"email\" required autofocus value=\"admin@example.com\"></label>\
         <label>Password<input name=\"password\" type=\"password\" placeholder=\"any will do\"></label>\
         <button>Log in</button></form>\
         <p class=\"who\">admin@example.com is the owner, hossam@example.com a guest.</p>"
    );
    page("Log in", "", &body, user)
}

fn gone(body: &mut String, id: &str, sorry: &str, why: &str) {
    let why = escape(why);
    write!(
        body,
        r#"<section class="gone" id="{id}-unavailable"><b>{sorry}</b><br><small>{why}</small></section>"#
    )
    .ok();
}

fn page(title: &str, hero: &str, body: &str, user: Option<&User>) -> String {
    let who = match user {
        Some(user) => format!(
            r#"<span id="user">{} ({})</span><a href="/Account/Logout">Log out</a>"#,
            escape(user.name),
            escape(user.role)
        ),
        None => r#"<a href="/Account/Login">Log in</a>"#.to_owned(),
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{}</title><style>{STYLE}</style></head><body><header>\
         <div class=\"bar\"><a class=\"brand\" href=\"/\">Espresso Shop</a><a href=\"/\">Our card</a>{who}</div>{hero}\
         </header><main>{body}</main><footer>Served through a mesh.</footer></body></html>",
        escape(title)
    )
}

/// Text as it may stand in HTML, in attributes too.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(text: &str, stars: Option<u8>) -> Part<Reviews> {
        let list = vec![Review { product_id: 1, reviewer: "A & B".into(), text: text.into(), stars }];
        Ok(Reviews { list, version: Some("v<2>".into()) })
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let html = product(1, &Err("<oops>".into()), &review("<script>x</script>", Some(9)), None);
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"));
        assert!(html.contains("A &amp; B") && html.contains("v&lt;2&gt;") && html.contains("&lt;oops&gt;"));
        assert!(html.contains("★★★★★") && html.contains("product-unavailable"));
    }

    #[test]
    fn stars_appear_only_where_the_service_gave_them() {
        let html = product(1, &Err(String::new()), &review("fine", None), None);
        assert!(!html.contains("class=\"stars\""));
    }
}
