// What torch has no fast kernel for, on maps in channels-last memory. model/kernels.py compiles this when a model is
// loaded, each kernel for its types and sizes, which it defines:
//   TYPE, BIAS, PLUS, OUT    element types, float or bf16; arithmetic is in float
//   C                        channels of a row, a multiple of VEC
// Rows are pixels: C channels, one after another, at some stride from the next pixel's.

typedef unsigned short bf16;
typedef long long int64;
#ifdef TYPE
typedef TYPE T;
#endif

#define VEC 4

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

__device__ inline void set(float* p, float x) { *p = x; }
__device__ inline void set(bf16* p, float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) <= 0x7f800000u) bits += 0x7fffu + ((bits >> 16) & 1);  // to the nearest, ties to even
    *p = (bf16)(bits >> 16);
}

struct alignas(16) Four32 { float v[VEC]; };
struct alignas(8) Four16 { bf16 v[VEC]; };

__device__ inline void load(const float* p, float* to) {
    Four32 four = *(const Four32*)p;
    for (int i = 0; i < VEC; i++) to[i] = four.v[i];
}
__device__ inline void load(const bf16* p, float* to) {
    Four16 four = *(const Four16*)p;
    for (int i = 0; i < VEC; i++) to[i] = as_float(four.v[i]);
}
__device__ inline void save(float* p, const float* from) {
    Four32 four;
    for (int i = 0; i < VEC; i++) four.v[i] = from[i];
    *(Four32*)p = four;
}
__device__ inline void save(bf16* p, const float* from) {
    Four16 four;
    for (int i = 0; i < VEC; i++) set(&four.v[i], from[i]);
    *(Four16*)p = four;
}

__device__ inline float activate(float x) {
#if ACTIVATION == 1
    return x > 0 ? x : 0.01f * x;
#elif ACTIVATION == 2
    return x > 0 ? x : 0;
#elif ACTIVATION == 3
    return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
#else
    return x;
#endif
}

#ifdef LAYER_NORM
// Layer norm over the channels of each row. LANES threads share a row, each with a run of C / LANES channels.
extern "C" __global__ void __launch_bounds__(256)
layer_norm(const T* x, const BIAS* weight, const BIAS* bias, T* out, int rows, int stride) {
    const int lane = threadIdx.x % LANES, row = (blockIdx.x * 256 + threadIdx.x) / LANES;
    const bool here = row < rows;
    constexpr int N = (C + LANES * VEC - 1) / (LANES * VEC);  // vectors of a thread: lane, lane + LANES …
    float v[N][VEC];
    float sum = 0;
    for (int n = 0; n < N; n++) {
        const int at = (n * LANES + lane) * VEC;
        for (int i = 0; i < VEC; i++) v[n][i] = 0;
        if (here && at < C) load(x + (int64)row * stride + at, v[n]);
        for (int i = 0; i < VEC; i++) sum += v[n][i];
    }
    for (int step = LANES / 2; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float mean = sum / C;
    float squares = 0;
    for (int n = 0; n < N; n++)
        if ((n * LANES + lane) * VEC < C)
            for (int i = 0; i < VEC; i++) squares += (v[n][i] - mean) * (v[n][i] - mean);
    for (int step = LANES / 2; step; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
    const float factor = rsqrtf(squares / C + 1e-5f);
    for (int n = 0; n < N; n++) {
        const int at = (n * LANES + lane) * VEC;
        if (!here || at >= C) continue;
        float w[VEC], b[VEC];
        load(weight + at, w);
        load(bias + at, b);
        for (int i = 0; i < VEC; i++) v[n][i] = (v[n][i] - mean) * factor * w[i] + b[i];
        save(out + (int64)row * C + at, v[n]);
    }
}
#endif

#ifdef ATTEND
// softmax(q·kᵀ/√D + bias)·v inside windows of SIDE x SIDE pixels of a map (B, height, width), read where they lie.
// A block has one window and HEADS of its ALL heads, a thread one query of one head. Keys come CHUNK at a time: what
// was summed before is rescaled when a larger score turns up.
//   qkv    (B, height, width, 3, ALL, D)
//   table  (ALL, (2·SIDE - 1)²), the bias by the query's place less the key's
//   shift  by which windows are shifted; then the last row and column of windows hold pixels of both edges of the
//          map, and those do not see each other
#define L (SIDE * SIDE)
#define ROW (2 * SIDE - 1)
#define CHUNK 16
#define NEVER (-1e30f)
extern "C" __global__ void __launch_bounds__(HEADS * L)
attend(const T* qkv, const BIAS* table, T* out, int height, int width, int shift) {
    __shared__ float keys[HEADS * L * D] __attribute__((aligned(16))), values[HEADS * L * D] __attribute__((aligned(16)));
    __shared__ float biases[HEADS * ROW * ROW];
    const int columns = width / SIDE, rows = height / SIDE;
    const int column = blockIdx.x % columns, row = blockIdx.x / columns % rows, image = blockIdx.x / columns / rows;
    const int first = blockIdx.y * HEADS;  // head
    const int me = threadIdx.x;

#define PIXEL(t) \
    (((int64)image * height + (row * SIDE + (t) / SIDE + shift) % height) * width + \
     (column * SIDE + (t) % SIDE + shift) % width)

    constexpr int PIECES = HEADS * D / VEC;  // of a pixel's channels here
    for (int n = me; n < L * PIECES; n += HEADS * L) {
        const int t = n / PIECES, at = n % PIECES * VEC, h = at / D, d = at % D;
        const T* from = qkv + PIXEL(t) * (3 * ALL * D) + first * D + at;
        load(from + ALL * D, keys + (h * L + t) * D + d);
        load(from + 2 * ALL * D, values + (h * L + t) * D + d);
    }
    for (int n = me; n < HEADS * ROW * ROW; n += HEADS * L) biases[n] = as_float(table[first * ROW * ROW + n]);
    __syncthreads();

    const int h = me / L, t = me % L, y = t / SIDE, x = t % SIDE;
    const int64 pixel = PIXEL(t);
    float q[D], sums[D], largest = NEVER, total = 0;
    for (int d = 0; d < D; d += VEC) load(qkv + pixel * (3 * ALL * D) + (first + h) * D + d, q + d);
    for (int d = 0; d < D; d++) {
        q[d] *= SCALE;
        sums[d] = 0;
    }
    const bool last_row = shift && row == rows - 1, last_column = shift && column == columns - 1;
    const float* bias = biases + h * ROW * ROW + (y + SIDE - 1) * ROW + x + SIDE - 1;
    for (int base = 0; base < L; base += CHUNK) {
        float scores[CHUNK], top = largest;
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            const int key = base + j, ky = key / SIDE, kx = key % SIDE;
            const Four32* k = (const Four32*)(keys + (h * L + key) * D);
            float score = bias[-ky * ROW - kx];
#pragma unroll
            for (int d = 0; d < D / VEC; d++) {
                const Four32 four = k[d];
                for (int i = 0; i < VEC; i++) score += q[d * VEC + i] * four.v[i];
            }
            if (last_row && (y >= SIDE - SIDE / 2) != (ky >= SIDE - SIDE / 2)) score = NEVER;
            if (last_column && (x >= SIDE - SIDE / 2) != (kx >= SIDE - SIDE / 2)) score = NEVER;
            scores[j] = score;
            top = fmaxf(top, score);
        }
        const float kept = expf(largest - top);
        total *= kept;
#pragma unroll
        for (int d = 0; d < D; d++) sums[d] *= kept;
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            const float weight = expf(scores[j] - top);
            total += weight;
            const Four32* v = (const Four32*)(values + (h * L + base + j) * D);
#pragma unroll
            for (int d = 0; d < D / VEC; d++) {
                const Four32 four = v[d];
                for (int i = 0; i < VEC; i++) sums[d * VEC + i] += weight * four.v[i];
            }
        }
        largest = top;
    }
    for (int d = 0; d < D; d++) sums[d] /= total;
    for (int d = 0; d < D; d += VEC) save(out + pixel * (ALL * D) + (first + h) * D + d, sums + d);
}
#endif

#ifdef FINISH
// What follows a convolution: out = act(x + bias + plus).
// `plus` has rows of its own, which begin again after `plus_rows` of them.
extern "C" __global__ void __launch_bounds__(256)
finish(const T* x, const BIAS* bias, const PLUS* plus, OUT* out, int rows, int plus_rows, int plus_stride,
       int out_stride) {
    const int64 n = (int64)blockIdx.x * 256 + threadIdx.x;
    const int row = n / (C / VEC), at = n % (C / VEC) * VEC;
    if (row >= rows) return;
    float v[VEC], b[VEC], p[VEC];
    load(x + (int64)row * C + at, v);
    if (HAS_BIAS) load(bias + at, b);
    if (HAS_PLUS) load(plus + (int64)(row % plus_rows) * plus_stride + at, p);
    for (int i = 0; i < VEC; i++) {
        if (HAS_BIAS) v[i] += b[i];
        if (HAS_PLUS) v[i] += p[i];
        v[i] = activate(v[i]);
    }
    save(out + (int64)row * out_stride + at, v);
}
#endif

#ifdef SHUFFLE
// act(x + bias) of a sub-pixel convolution: channel 4c + 2i + j of a pixel is channel c of pixel (i, j) of four.
extern "C" __global__ void __launch_bounds__(256)
shuffle(const T* x, const BIAS* bias, OUT* out, int rows, int width) {
    const int64 n = (int64)blockIdx.x * 256 + threadIdx.x;
    const int row = n / (C / VEC), c = n % (C / VEC);
    if (row >= rows) return;
    float v[VEC], b[VEC];
    load(x + ((int64)row * C + c * VEC), v);
    load(bias + c * VEC, b);
    const int64 corner = (int64)(row / width) * 4 * width + row % width * 2;  // rows of the map above, twice over
    for (int i = 0; i < VEC; i++)
        set(out + (corner + i / 2 * 2 * width + i % 2) * (C / VEC) + c, activate(v[i] + b[i]));
}
#endif

#ifdef NORMALISE
// GDN's last step: out = plus + x·power^±½.
extern "C" __global__ void __launch_bounds__(256)
normalise(const T* x, const T* power, const PLUS* plus, PLUS* out, int vectors) {
    const int64 n = (int64)blockIdx.x * 256 + threadIdx.x;
    if (n >= vectors) return;
    float v[VEC], w[VEC], p[VEC];
    load(x + n * VEC, v);
    load(power + n * VEC, w);
    load(plus + n * VEC, p);
    for (int i = 0; i < VEC; i++) p[i] += v[i] * (INVERSE ? sqrtf(w[i]) : rsqrtf(w[i]));
    save(out + n * VEC, p);
}
#endif

#ifdef WINOGRAD
// 3x3 convolution, zeros around, by F(2x2, 3x3) of Lavin and Gray (2016): 16 products for 36. A tile is a square of
// 2x2 outputs, and of the 4x4 inputs that they need. Both halves are linear, the products between them a batch of 16
// matrix products.
__device__ inline void input_step(const float* d, int step, float* out) {
    out[0] = d[0] - d[2 * step];
    out[step] = d[step] + d[2 * step];
    out[2 * step] = d[2 * step] - d[step];
    out[3 * step] = d[step] - d[3 * step];
}

// x (B, height, width, C) at `stride` -> (16, tiles, C)
extern "C" __global__ void __launch_bounds__(128)
scatter(const float* x, float* out, int tiles, int height, int width, int stride) {
    const int64 n = (int64)blockIdx.x * 128 + threadIdx.x;
    const int tile = n / (C / VEC), at = n % (C / VEC) * VEC;
    if (tile >= tiles) return;
    const int columns = width / 2, rows = height / 2;
    const int left = tile % columns * 2 - 1, above = tile / columns % rows * 2 - 1, image = tile / columns / rows;
    float d[VEC][16], e[16];
#pragma unroll
    for (int place = 0; place < 16; place++) {
        const int y = above + place / 4, x0 = left + place % 4;
        float four[VEC] = {0, 0, 0, 0};
        if (y >= 0 && y < height && x0 >= 0 && x0 < width)
            load(x + (((int64)image * height + y) * width + x0) * stride + at, four);
        for (int i = 0; i < VEC; i++) d[i][place] = four[i];
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        for (int k = 0; k < 4; k++) input_step(d[i] + k, 4, e + k);
        for (int k = 0; k < 4; k++) input_step(e + 4 * k, 1, d[i] + 4 * k);
    }
#pragma unroll
    for (int place = 0; place < 16; place++) {
        const float four[VEC] = {d[0][place], d[1][place], d[2][place], d[3][place]};
        save(out + ((int64)place * tiles + tile) * C + at, four);
    }
}

// (16, tiles, C) -> act(… + bias + plus), (B, height, width, C)
extern "C" __global__ void __launch_bounds__(128)
gather(const float* x, const float* bias, const float* plus, float* out, int tiles, int height, int width,
       int plus_rows) {
    const int64 n = (int64)blockIdx.x * 128 + threadIdx.x;
    const int tile = n / (C / VEC), at = n % (C / VEC) * VEC;
    if (tile >= tiles) return;
    const int columns = width / 2, rows = height / 2;
    const int left = tile % columns * 2, above = tile / columns % rows * 2, image = tile / columns / rows;
    float m[VEC][16], b[VEC], p[VEC];
#pragma unroll
    for (int place = 0; place < 16; place++) {
        float four[VEC];
        load(x + ((int64)place * tiles + tile) * C + at, four);
        for (int i = 0; i < VEC; i++) m[i][place] = four[i];
    }
    if (HAS_BIAS) load(bias + at, b);
#pragma unroll
    for (int y = 0; y < 2; y++)
#pragma unroll
        for (int x0 = 0; x0 < 2; x0++) {
            const int pixel = (image * height + above + y) * width + left + x0;
            if (HAS_PLUS) load(plus + (int64)(pixel % plus_rows) * C + at, p);
            float v[VEC];
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                float column[4];
                for (int k = 0; k < 4; k++)
                    column[k] = y ? m[i][4 + k] - m[i][8 + k] - m[i][12 + k] : m[i][k] + m[i][4 + k] + m[i][8 + k];
                v[i] = x0 ? column[1] - column[2] - column[3] : column[0] + column[1] + column[2];
                if (HAS_BIAS) v[i] += b[i];
                if (HAS_PLUS) v[i] += p[i];
                v[i] = activate(v[i]);
            }
            save(out + (int64)pixel * C + at, v);
        }
}
#endif
