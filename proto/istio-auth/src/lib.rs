//! istio-auth
