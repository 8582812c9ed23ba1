"""Compilation of components to what is measured of them, with fewer gates than the unitary takes.

Inputs enter by one RX on each qubit of |0...0>, then follows a fixed unitary U, and only <Z_i> are
measured:

    <Z_i>(x) = sum over P in {I, Y, Z}^n of T[i, P] v(x, P),    T[i, P] = Tr(U^+ Z_i U P) / 2^n,

where v(x, P) is the product of -sin x_q for each Y and cos x_q for each Z in P. Any circuit with
the same T gives the same values, for all inputs: U matters only up to phases of the basis states,
and 4^n - 2^n of its dimensions are left. Over uniform inputs, the mean squared error of <Z_i> is
the sum over P of 2^-|P| (error of T[i, P])^2.
"""
