// tanh on a vector: at most 4 ulp from the true value in float32 and float64, odd, exact at ±0, ±1 for large
// arguments and ±inf, NaN for NaN.
//
//     tanh|x| = E / (E + 2),   E = exp(2|x|) - 1
//
// which keeps all digits of a small x because E does. E comes from the usual reduction 2|x| = n·ln2 + r with
// |r| <= ln2/2: E = 2^n·(exp(r) - 1) + (2^n - 1), and exp(r) - 1 from its Taylor series, cut off where the next term is
// below half an ulp.
#ifndef RNN_TANH_H_
#define RNN_TANH_H_

#include "simd.h"

namespace rnn {
namespace RNN_LEVEL {

template <class Real>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float saturation = 10.0f;          // tanh rounds to 1 from 9.01 on
  static constexpr float to_integer = 12582912.0f;    // 1.5·2^23: adding it rounds to an integer in the low bits
  static constexpr float one_over_ln2 = 1.44269504f;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  static constexpr float ln2_high = 0.693359375f;     // 9 bits, so that n·ln2_high is exact
  static constexpr float ln2_low = -2.12194440e-4f;   // ln2 - ln2_high
  static constexpr int terms = 7;                     // r^8/8! < 2^-26·r
};

template <>
struct TanhConstants<double> {
  static constexpr double saturation = 20.0;          // tanh rounds to 1 from 19.07 on
  static constexpr double to_integer = 6755399441055744.0;  // 1.5·2^52
  static constexpr double one_over_ln2 = 1.44269504088896340736;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr double ln2_high = 6.93147180369123816490e-01;  // 32 bits
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr int terms = 13;                    // r^14/14! < 2^-56·r
};

constexpr double factorial(int k) { return k <= 1 ? 1.0 : k * factorial(k - 1); }

template <class Real>
RNN_INLINE Vec<Real> tanh(Vec<Real> x) {
  using C = TanhConstants<Real>;
  using V = Vec<Real>;
  using I = Int<Real>;
  const I sign_bit = I{} | (typename Simd<Real>::Lane(1) << (8 * sizeof(Real) - 1));
  const I sign = bits<I>(x) & sign_bit;
  const V magnitude = bits<V>(bits<I>(x) & ~sign_bit);
  const V saturation = V{} + C::saturation;
  const V y = 2 * (magnitude > saturation ? saturation : magnitude);  // so that NaN stays NaN

  const V shifted = y * C::one_over_ln2 + C::to_integer;
  const V n = shifted - C::to_integer;
  const V r = (y - n * C::ln2_high) - n * C::ln2_low;

  V q = V{} + Real(1 / factorial(C::terms));
#pragma GCC unroll 16
  for (int k = C::terms - 1; k >= 2; --k) q = q * r + Real(1 / factorial(k));
  const V p = r + (r * r) * q;  // exp(r) - 1

  const I exponent = bits<I>(shifted) - bits<I>(V{} + C::to_integer);
  const V power = bits<V>((exponent + C::exponent_bias) << C::mantissa_bits);  // 2^n
  const V E = power * p + (power - 1);
  return bits<V>(bits<I>(E / (E + 2)) | sign);
}

}  // namespace RNN_LEVEL
}  // namespace rnn
#endif  // RNN_TANH_H_
