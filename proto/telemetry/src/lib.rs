//! telemetry-api
