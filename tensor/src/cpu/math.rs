//! exp, log, sin, cos, tanh as polynomials with a fixed order of operations.
