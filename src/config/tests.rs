//! What lab files promise.
