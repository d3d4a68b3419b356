//! The simulation against what queueing theory knows, and against itself.

use super::*;
