//! mesh-traffic
