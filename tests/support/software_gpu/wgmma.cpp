// Matrix instructions of four warps, whose factors lie in shared memory as descriptors say.
#include <memory>
#include <vector>

#include "elementwise.h"
#include "tensor_elements.h"

namespace software_gpu {
namespace {

// wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16
std::optional<Wgmma> parse_wgmma(std::string_view text) {
    Opcode o(text);
    if (o.name != "wgmma" || o.parts.size() != 7 || o.at(0) != "mma_async" || o.at(1) != "sync") return {};
    auto shape = o.at(3);
    auto d = element_named(o.at(-3)), a = element_named(o.at(-2)), b = element_named(o.at(-1));
    if (shape.substr(0, 4) != "m64n" || shape.find('k') == shape.npos || !d || !a || !b || *a >= Element::f32)
        return {};
    auto number = [](std::string_view digits) {
        int value = 0;
        for (char digit : digits) value = digit >= '0' && digit <= '9' ? 10 * value + digit - '0' : -10000;
        return value;
    };
    int n = number(shape.substr(4, shape.find('k') - 4)), k = number(shape.substr(shape.find('k') + 1));
    if (n < 8 || n > 256 || n % 8 || k * bytes_of(*a) != 32 || bytes_of(*a) != bytes_of(*b)) return {};
    if (is_integer(*a) != (*d == Element::s32) || is_integer(*a) != is_integer(*b)) return {};
    if (*d != Element::s32 && *d != Element::f32 && *d != Element::f16) return {};
    return Wgmma{n, k, *a, *b, *d, *d == Element::f16 ? n / 4 : n / 2};
}

// A factor in shared memory: lines along k (or, transposed, across it) in units of 16 bytes, whose places within
// blocks of 256, 512 or 1024 bytes are exchanged.
struct Descriptor {
    uint32_t start, leading, stride, width;  // bytes; `width` of a line of a block

    explicit Descriptor(uint64_t bits)
        : start(uint32_t(bits & 0x3fff) << 4),
          leading(uint32_t(bits >> 16 & 0x3fff) << 4),
          stride(uint32_t(bits >> 32 & 0x3fff) << 4),
          width(bits >> 62 == 0 ? 16 : 256 >> (bits >> 62)) {}

    uint32_t exchanged(uint32_t address) const {
        uint32_t units = width / 16 - 1;
        return address ^ ((address >> 7 & units) << 4);
    }
    // Unit `along` of 16 bytes of line `line`; lines run along k.
    uint32_t of_row(uint32_t line, uint32_t along) const {
        uint32_t within = line / 8 * stride + line % 8 * width;
        return exchanged(start + within + along * (width == 16 ? leading : 16));
    }
    // Unit `along` of line k; lines run across k.
    uint32_t of_k(uint32_t k, uint32_t along) const {
        uint32_t units = width / 16;
        if (width == 16) return start + k % 8 * 16 + k / 8 * leading + along * stride;
        return exchanged(start + along % units * 16 + along / units * leading + k % 8 * width + k / 8 * stride);
    }
};

// A factor as [lines][k] numbers; says why memory is refused.
template <class T>
const char* read_factor(
    uint64_t descriptor, Element element, int lines, int depth, bool transposed, int sign, SharedReader& shared,
    T* into) {
    Descriptor layout(descriptor);
    int size = bytes_of(element), each = 16 / size;
    auto take = [&](const uint8_t* unit, int at) {
        uint32_t bits = 0;
        std::memcpy(&bits, unit + at * size, size);
        return T(value_of(element, bits)) * T(sign);
    };
    int rows = transposed ? depth : lines, units = (transposed ? lines : depth) / each;
    for (int row = 0; row < rows; row++)
        for (int along = 0; along < units; along++) {
            const uint8_t* unit;
            uint32_t place = transposed ? layout.of_k(row, along) : layout.of_row(row, along);
            if (auto* wrong = shared.read(place, 16, &unit)) return wrong;
            for (int i = 0; i < each; i++) {
                int other = along * each + i;
                into[transposed ? other * depth + row : row * depth + other] = take(unit, i);
            }
        }
    return nullptr;
}

template <class T>
struct Factors {
    T a[64 * 32], b[256 * 32], across[32 * 256];
};

template <class T>
void accumulate(const Wgmma& wgmma, uint32_t* const* d, bool keep, Factors<T>& factors) {
    for (int column = 0; column < wgmma.n; column++)
        for (int k = 0; k < wgmma.k; k++) factors.across[k * wgmma.n + column] = factors.b[column * wgmma.k + k];
    std::vector<T> sums(16 * wgmma.n);
    for (int warp = 0; warp < 4; warp++) {
        if (keep)
            for_each_of_c(wgmma.d, wgmma.n, [&](int r, int t, int shift, int row, int column) {
                sums[row * wgmma.n + column] = accumulator<T>(wgmma.d, d[r][32 * warp + t] >> shift);
            });
        else
            std::fill(sums.begin(), sums.end(), T(0));
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < wgmma.k; k++) {
                T left = factors.a[(16 * warp + row) * wgmma.k + k];
                for (int column = 0; column < wgmma.n; column++)
                    sums[row * wgmma.n + column] += left * factors.across[k * wgmma.n + column];
            }
        for_each_of_c(wgmma.d, wgmma.n, [&](int r, int t, int shift, int row, int column) {
            put_accumulator<T>(wgmma.d, d[r][32 * warp + t], shift, sums[row * wgmma.n + column]);
        });
    }
}

template <class T>
const char* multiply_as(const Wgmma& wgmma, const WgmmaOperands& given, SharedReader& shared) {
    auto factors = std::make_unique<Factors<T>>();
    int sign_a = given.negate_a ? -1 : 1, sign_b = given.negate_b ? -1 : 1;
    const char* wrong = nullptr;
    if (given.a != nullptr)
        for (int warp = 0; warp < 4; warp++)
            for_each_of_a(wgmma.a, wgmma.k, [&](int r, int t, int shift, int row, int column) {
                T value = T(value_of(wgmma.a, given.a[r][32 * warp + t] >> shift)) * T(sign_a);
                factors->a[(16 * warp + row) * wgmma.k + column] = value;
            });
    else
        wrong = read_factor(given.a_descriptor, wgmma.a, 64, wgmma.k, given.transposed_a, sign_a, shared, factors->a);
    if (!wrong)
        wrong = read_factor(
            given.b_descriptor, wgmma.b, wgmma.n, wgmma.k, given.transposed_b, sign_b, shared, factors->b);
    if (!wrong) accumulate(wgmma, given.d, given.accumulate, *factors);
    return wrong;
}

}  // namespace

Wgmma find_wgmma(std::string_view opcode) { return parse_wgmma(opcode).value_or(Wgmma{}); }

std::string multiply(const Wgmma& wgmma, const WgmmaOperands& given, SharedReader& shared) {
    for (uint64_t descriptor : {given.a ? 0 : given.a_descriptor, given.b_descriptor})
        if (descriptor >> 49 & 7) return "descriptors with a base offset have no model";
    if ((given.transposed_a || given.transposed_b) && bytes_of(wgmma.a) != 2)
        return "only factors of 16 bits can be transposed";
    auto* wrong = wgmma.d == Element::s32 ? multiply_as<int32_t>(wgmma, given, shared)
                                          : multiply_as<float>(wgmma, given, shared);
    return wrong ? wrong : "";
}

}  // namespace software_gpu
