//! Files to models, with diagnostics.
