// tanh on a vector: at most 4 ulp from the true value in float32 and float64, odd, exact at ±0, ±1 for large
// arguments and ±inf, NaN for NaN.
//
//     tanh|x| = E / (E + 1),   E = (exp(2|x|) - 1) / 2
//
// This keeps all digits of a small x, because E does. E comes from the usual reduction |x| = n·ln2/2 + r, |r| <= ln2/4:
//
//     E = 2^n·g(r) + (2^n - 1)/2,   g(r) = (exp(2r) - 1) / 2 = r + r²·q(r)
//
// In float32 tanh takes up to a fifth of a step's time, so q is the polynomial of degree 4 with the least relative error of g
// (1.3e-8, found by a weighted fit). In float64 q is the Taylor series up to the term where the next one is below half an ulp.
#pragma once

#include "simd.h"

namespace rnn {
namespace RNN_LEVEL {

template <class Real>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float SATURATION = 9.02f;  // tanh rounds to 1 from 9.01 on
  static constexpr int MANTISSA_BITS = 23;
  static constexpr float TO_INTEGER = 12582912.0f + 127;  // 1.5·2^23: adding it rounds to an integer. 127 is the bias.
  static constexpr float N_PER_UNIT = 2.88539008f;        // 2/ln2
  static constexpr float HALF_LN2 = 0.346573590f;
  static constexpr float Q[] = {0.0444240645f, 0.133864328f, 0.333337605f, 0.666661739f, 0.99999994f};  // highest power first
};

constexpr double taylor(int k) { return k == 1 ? 1.0 : taylor(k - 1) * 2 / k; }  // of g: 2^(k-1) / k!

template <>
struct TanhConstants<double> {
  static constexpr double SATURATION = 19.1;  // 19.07
  static constexpr int MANTISSA_BITS = 52;
  static constexpr double TO_INTEGER = 6755399441055744.0 + 1023;  // 1.5·2^52
  static constexpr double N_PER_UNIT = 2.88539008177792681472;
  static constexpr double HALF_LN2 = 0.346573590279972654709;
  static constexpr double Q[] = {taylor(13), taylor(12), taylor(11), taylor(10), taylor(9), taylor(8),
                                 taylor(7),  taylor(6),  taylor(5),  taylor(4),  taylor(3), taylor(2)};
};

template <class Real>
RNN_INLINE Vec<Real> tanh(Vec<Real> x) {
  using C = TanhConstants<Real>;
  using V = Vec<Real>;
  using I = Int<Real>;
  const I sign_bit = I{} | (typename Simd<Real>::Lane(1) << (8 * sizeof(Real) - 1));
  const I sign = bits<I>(x) & sign_bit;
  const V magnitude = bits<V>(bits<I>(x) & ~sign_bit);

  const V shifted = magnitude * C::N_PER_UNIT + C::TO_INTEGER;
  const V r = magnitude - (shifted - C::TO_INTEGER) * C::HALF_LN2;
  V q = V{} + C::Q[0];
#pragma GCC unroll 16
  for (unsigned k = 1; k < sizeof C::Q / sizeof *C::Q; ++k) q = q * r + C::Q[k];
  const V g = r + (r * r) * q;

  const V power = bits<V>(bits<I>(shifted) << C::MANTISSA_BITS);  // 2^n: the bits above n + bias are shifted out
  const V E = power * g + (power * Real(0.5) - Real(0.5));
  const V y = magnitude > V{} + C::SATURATION ? V{} + Real(1) : E / (E + 1);  // in this order, so that NaN stays NaN
  return bits<V>(bits<I>(y) | sign);
}

}  // namespace RNN_LEVEL
}  // namespace rnn
