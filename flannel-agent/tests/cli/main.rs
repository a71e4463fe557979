//! Commands of the binary that need neither root nor a cluster: what they print, and how they exit.

mod check_config;
