// Attention of packed rows in float32, on CPUs with AVX2: prefix_attention.py says what attends to what.
//
// A unit is a prompt with its responses. Its pieces (the prompt first) lie in `pieces`, three numbers each: first
// position, tokens, tokens of the prompt before it (0 for the prompt itself). One task is one unit and one key head, so
// threads never write to one place and results do not depend on their number. Four queries go together: their scores
// against all visible keys stay in the cache, so that neither direction needs a running softmax.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef int32_t veci __attribute__((vector_size(32), aligned(4)));

namespace {

constexpr int Q = 4;   // queries at a time
constexpr int W = 16;  // scores are computed in multiples of this

inline vec& at(float* p) { return *reinterpret_cast<vec*>(p); }
inline vec at(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline vec all(float x) { return vec{x, x, x, x, x, x, x, x}; }
inline float sum(vec x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

// exp for x <= 0 to 2 units in the last place (Cody and Waite's reduction, then a polynomial); 0 below -87, NaN of NaN
inline vec exp_negative(vec x) {
    const veci gone = x < all(-87.0f);
    x = gone ? all(-87.0f) : x;
    const vec t = x * all(1.44269504f) + all(12582912.0f), n = t - all(12582912.0f);  // n: the nearest whole number
    const vec r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + all(c);
    p = p * r * r + r + all(1.0f);
    const vec scaled = (vec)((veci)p + ((veci)t << 23));  // p 2^n
    return gone ? all(0.0f) : scaled;
}

inline int up(int n) { return (n + W - 1) / W * W; }

// out[Q][stride] = a[Q][D] b[D][stride], its first n columns (a multiple of W)
void products(const float* a, const float* b, float* out, int D, int n, int stride) {
    for (int j = 0; j < n; j += W) {
        vec c[Q][2] = {};
        for (int d = 0; d < D; d++) {
            vec x = at(b + (int64_t)d * stride + j), y = at(b + (int64_t)d * stride + j + 8);
            for (int i = 0; i < Q; i++) {
                c[i][0] += all(a[i * D + d]) * x;
                c[i][1] += all(a[i * D + d]) * y;
            }
        }
        for (int i = 0; i < Q; i++)
            for (int l = 0; l < 2; l++) at(out + (int64_t)i * stride + j + 8 * l) = c[i][l];
    }
}

// out[Q][D] = w[Q][stride] x[n][D]
template <int V> void sums(const float* w, const float* x, float* out, int D, int n, int stride) {
    for (int d = 0; d < D; d += 8 * V) {
        vec c[Q][V] = {};
        for (int j = 0; j < n; j++)
            for (int v = 0; v < V; v++) {
                vec y = at(x + (int64_t)j * D + d + 8 * v);
                for (int i = 0; i < Q; i++) c[i][v] += all(w[(int64_t)i * stride + j]) * y;
            }
        for (int i = 0; i < Q; i++)
            for (int v = 0; v < V; v++) at(out + i * D + d + 8 * v) = c[i][v];
    }
}

// x[n][D] += w[Q][stride]^T a[Q][D]
template <int V> void spread(const float* w, const float* a, float* x, int D, int n, int stride) {
    for (int d = 0; d < D; d += 8 * V) {
        vec c[Q][V];
        for (int i = 0; i < Q; i++)
            for (int v = 0; v < V; v++) c[i][v] = at(a + i * D + d + 8 * v);
        for (int j = 0; j < n; j++)
            for (int v = 0; v < V; v++) {
                vec y = at(x + (int64_t)j * D + d + 8 * v);
                for (int i = 0; i < Q; i++) y += all(w[(int64_t)i * stride + j]) * c[i][v];
                at(x + (int64_t)j * D + d + 8 * v) = y;
            }
    }
}

struct Tensor {  // [rows, heads, T, D] in any strides, but D contiguous
    float* data;
    int64_t row, head, token;
    Tensor(float* const* all, const int64_t* strides, int i)
        : data(all[i]), row(strides[3 * i]), head(strides[3 * i + 1]), token(strides[3 * i + 2]) {}
    float* operator()(int64_t place, int64_t T, int64_t h) const {
        return data + place / T * row + h * head + place % T * token;
    }
};

class Scratch {  // one thread's buffers; all sizes are multiples of 16
    float *block, *next;

  public:
    explicit Scratch(int64_t n) : block(static_cast<float*>(aligned_alloc(64, (n * 4 + 63) / 64 * 64))), next(block) {}
    ~Scratch() { free(block); }
    float* take(int64_t n) { return (next += n) - n; }
};

// rows[from + i] and columns[.][from + i] = x at the tokens first, first + 1, ...; behind them columns are 0
void load(const Tensor& x, int64_t first, int n, int from, int64_t T, int64_t h, int D, float* rows, float* columns,
          int stride) {
    for (int i = 0; i < n; i++) {
        const float* y = x(first + i, T, h);
        if (rows) std::memcpy(rows + (int64_t)(from + i) * D, y, D * sizeof(float));
        if (columns)
            for (int d = 0; d < D; d++) columns[(int64_t)d * stride + from + i] = y[d];
    }
    for (int d = 0; d < (columns ? D : 0); d++)
        for (int j = from + n; j < up(from + n); j++) columns[(int64_t)d * stride + j] = 0.0f;
}

// Q queries beginning at `first`, of which n are real; the others are 0
void take(const Tensor& x, int64_t first, int n, int64_t T, int64_t h, int D, float scale, float* out) {
    for (int i = 0; i < Q; i++) {
        const float* y = i < n ? x(first + i, T, h) : nullptr;
        for (int d = 0; d < D; d++) out[i * D + d] = y ? scale * y[d] : 0.0f;
    }
}

}  // namespace

extern "C" {

// tensors: query, key, value, out; lse [heads, R T]: log of each query's sum; `units[u]` to `units[u + 1]`: its pieces
void upo_attention(float* const* data, const int64_t* strides, float* lse, const int64_t* pieces, const int64_t* units,
                   int64_t count, int64_t T, int64_t rows, int heads, int key_heads, int D, int longest, int threads,
                   float scale) {
    const Tensor q(data, strides, 0), k(data, strides, 1), v(data, strides, 2), out(data, strides, 3);
    const int group = heads / key_heads, stride = up(longest);
    const int64_t all_keys = (int64_t)stride * D;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(2 * all_keys + Q * stride + 2 * Q * D);
        float *kt = scratch.take(all_keys), *vs = scratch.take(all_keys), *p = scratch.take(Q * stride);
        float *a = scratch.take(Q * D), *y = scratch.take(Q * D);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * key_heads; task++) {
            const int64_t unit = task / key_heads, kh = task % key_heads;
            for (int64_t piece = units[unit]; piece < units[unit + 1]; piece++) {
                const int64_t begin = pieces[3 * piece];
                const int own = pieces[3 * piece + 1], before = pieces[3 * piece + 2];
                load(k, begin, own, before, T, kh, D, nullptr, kt, stride);
                load(v, begin, own, before, T, kh, D, vs, nullptr, stride);
                for (int64_t h = kh * group; h < (kh + 1) * group; h++)
                    for (int i = 0; i < own; i += Q) {
                        const int real = own - i < Q ? own - i : Q, seen = before + i + real;
                        take(q, begin + i, real, T, h, D, scale, a);
                        products(a, kt, p, D, up(seen), stride);
                        float total[Q];
                        for (int b = 0; b < Q; b++) {
                            float* s = p + (int64_t)b * stride;
                            const int visible = before + i + (b < real ? b : real - 1) + 1;
                            for (int j = visible; j < up(seen); j++) s[j] = -1e30f;
                            vec high = at(s);
                            for (int j = 8; j < up(seen); j += 8) high = at(s + j) > high ? at(s + j) : high;
                            float top = high[0];
                            for (int l = 1; l < 8; l++) top = high[l] > top ? high[l] : top;
                            vec z = {};
                            for (int j = 0; j < up(seen); j += 8) z += at(s + j) = exp_negative(at(s + j) - all(top));
                            total[b] = sum(z);
                            if (b < real) lse[h * rows * T + begin + i + b] = top + __builtin_logf(total[b]);
                        }
                        (D % 16 ? sums<1> : sums<2>)(p, vs, y, D, seen, stride);
                        for (int b = 0; b < real; b++) {
                            float* o = out(begin + i + b, T, h);
                            for (int d = 0; d < D; d++) o[d] = y[b * D + d] / total[b];
                        }
                    }
            }
        }
    }
}

// tensors: query, key, value, out, its gradient; then the gradients of query, key and value
void upo_attention_backward(float* const* data, const int64_t* strides, const float* lse, const int64_t* pieces,
                            const int64_t* units, int64_t count, int64_t T, int64_t rows, int heads, int key_heads,
                            int D, int longest, int threads, float scale) {
    const Tensor q(data, strides, 0), k(data, strides, 1), v(data, strides, 2), out(data, strides, 3);
    const Tensor dout(data, strides, 4), dq(data, strides, 5), dk(data, strides, 6), dv(data, strides, 7);
    const int group = heads / key_heads, stride = up(longest);
    const int64_t all_keys = (int64_t)stride * D;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(5 * all_keys + 2 * Q * stride + 3 * Q * D);
        float *ks = scratch.take(all_keys), *kt = scratch.take(all_keys), *vt = scratch.take(all_keys);
        float *gk = scratch.take(all_keys), *gv = scratch.take(all_keys);
        float *p = scratch.take(Q * stride), *s = scratch.take(Q * stride);
        float *a = scratch.take(Q * D), *g = scratch.take(Q * D), *y = scratch.take(Q * D);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * key_heads; task++) {
            const int64_t unit = task / key_heads, kh = task % key_heads;
            const int64_t* prompt = pieces + 3 * units[unit];
            auto store = [&](int64_t begin, int n, int from) {
                for (int i = 0; i < n; i++) {
                    std::memcpy(dk(begin + i, T, kh), gk + (int64_t)(from + i) * D, D * sizeof(float));
                    std::memcpy(dv(begin + i, T, kh), gv + (int64_t)(from + i) * D, D * sizeof(float));
                }
            };
            std::memset(gk, 0, prompt[1] * D * sizeof(float));
            std::memset(gv, 0, prompt[1] * D * sizeof(float));
            for (int64_t piece = units[unit]; piece < units[unit + 1]; piece++) {
                const int64_t begin = pieces[3 * piece];
                const int own = pieces[3 * piece + 1], before = pieces[3 * piece + 2];
                load(k, begin, own, before, T, kh, D, ks, kt, stride);
                load(v, begin, own, before, T, kh, D, nullptr, vt, stride);
                if (before) {
                    std::memset(gk + (int64_t)before * D, 0, (int64_t)own * D * sizeof(float));
                    std::memset(gv + (int64_t)before * D, 0, (int64_t)own * D * sizeof(float));
                }
                for (int64_t h = kh * group; h < (kh + 1) * group; h++)
                    for (int i = 0; i < own; i += Q) {
                        const int real = own - i < Q ? own - i : Q, seen = before + i + real;
                        take(q, begin + i, real, T, h, D, scale, a);
                        take(dout, begin + i, real, T, h, D, 1.0f, g);
                        products(a, kt, p, D, up(seen), stride);
                        products(g, vt, s, D, up(seen), stride);
                        for (int b = 0; b < Q; b++) {
                            float *pb = p + (int64_t)b * stride, *sb = s + (int64_t)b * stride, delta = 0, norm = 0;
                            if (b < real) {
                                const float* o = out(begin + i + b, T, h);
                                for (int d = 0; d < D; d++) delta += o[d] * g[b * D + d];
                                norm = lse[h * rows * T + begin + i + b];
                            }
                            const int visible = b < real ? before + i + b + 1 : 0;
                            for (int j = visible; j < up(seen); j++) pb[j] = -1e30f;
                            for (int j = 0; j < up(seen); j += 8) {
                                vec x = at(pb + j) = exp_negative(at(pb + j) - all(norm));
                                at(sb + j) = x * (at(sb + j) - all(delta));
                            }
                        }
                        (D % 16 ? sums<1> : sums<2>)(s, ks, y, D, seen, stride);
                        for (int b = 0; b < real; b++) {
                            float* o = dq(begin + i + b, T, h);
                            for (int d = 0; d < D; d++) o[d] = scale * y[b * D + d];
                        }
                        (D % 16 ? spread<1> : spread<2>)(s, a, gk, D, seen, stride);
                        (D % 16 ? spread<1> : spread<2>)(p, g, gv, D, seen, stride);
                    }
                if (before) store(begin, own, before);
            }
            store(prompt[0], prompt[1], 0);
        }
    }
}

}  // extern "C"
