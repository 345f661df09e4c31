//! mixer-api
