//! espresso-shop
