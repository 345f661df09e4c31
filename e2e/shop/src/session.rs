//! Who is logged in: a cookie with a random id, and what the id stands for.
//!
//! In: an email at login, a `Cookie` header later. Out: a [`User`]. Kept true: a bounded number of sessions; ids cannot be guessed.
//! Not here: passwords. This is a demonstration shop; it takes any.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Sessions kept; the shop forgets everybody when it has more.
const MOST: usize = 10_000;
const COOKIE: &str = "espresso-session";

/// Somebody the shop knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name shown on the page and passed on as `userName`.
    pub name: &'static str,
    /// Passed on as `UserEmail`.
    pub email: &'static str,
    /// Passed on as `userRole`.
    pub role: &'static str,
}

const KNOWN: [User; 2] = [
    User { name: "Admin", email: "admin@example.com", role: "Administrator" },
    User { name: "Hossam", email: "hossam@example.com", role: "User" },
];

/// The sessions of one web process.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<u128, User>>>);

impl Sessions {
    /// Logs in whoever has this email; returns the `Set-Cookie` value, or `None` for a stranger.
    #[must_use]
    pub fn login(&self, email: &str) -> Option<String> {
        let user = KNOWN.into_iter().find(|u| u.email.eq_ignore_ascii_case(email.trim()))?;
        let id: u128 = rand::random();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MOST {
            sessions.clear();
        }
        sessions.insert(id, user);
        Some(format!("{COOKIE}={id:032x}; Path=/; HttpOnly; SameSite=Lax"))
    }

    /// Who sent this `Cookie` header.
    #[must_use]
    pub fn user(&self, cookies: &str) -> Option<User> {
        let id = id_in(cookies)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Ends the session that this `Cookie` header names; returns the `Set-Cookie` value that removes the cookie.
    #[must_use]
    pub fn logout(&self, cookies: &str) -> String {
        if let Some(id) = id_in(cookies) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
    }
}

fn id_in(cookies: &str) -> Option<u128> {
    let pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    let value = pairs.into_iter().find(|(name, _)| *name == COOKIE)?.1;
    u128::from_str_radix(value, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lasts_from_login_to_logout() {
        let sessions = Sessions::default();
        let cookie = sessions.login(" Admin@example.com ").expect("a known guest");
        let sent = format!("theme=dark; {}", cookie.split(';').next().expect("name=value"));
        assert_eq!(sessions.user(&sent).expect("logged in").role, "Administrator");
        assert!(sessions.logout(&sent).contains("Max-Age=0"));
        assert_eq!(sessions.user(&sent), None);
    }

    #[test]
    fn strangers_and_made_up_cookies_are_nobody() {
        let sessions = Sessions::default();
        assert_eq!(sessions.login("eve@example.com"), None);
        for cookie in ["", "espresso-session=", "espresso-session=zz", "espresso-session=0", "other=1"] {
            assert_eq!(sessions.user(cookie), None, "{cookie}");
        }
    }
}
