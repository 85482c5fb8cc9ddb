#include "machine.h"

#include <utility>
#include <vector>

#include "block.h"

namespace software_gpu {
namespace {

struct Random {  // splitmix64
    uint64_t state;
    uint64_t below(uint64_t bound) {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return (z ^ (z >> 31)) % bound;
    }
};

}  // namespace

bool launch(const Module& module, const Launch& launch, Memory& memory, std::string& error) {
    const Function* function = module.find(launch.function);
    if (!function) return error = std::string(launch.function) + ": no such function", false;
    uint64_t threads = 1, blocks = 1;
    for (int i = 0; i < 3; i++) threads *= launch.block[i], blocks *= launch.grid[i];
    auto refuse = [&](const std::string& what) { return error = function->name + ": " + what, false; };
    if (!threads || threads > 1024 || !blocks) return refuse("blocks of " + std::to_string(threads) + " threads");
    if (launch.grid[1] > 65535 || launch.grid[2] > 65535) return refuse("a grid that is too large");
    if (function->required_threads && threads != function->required_threads)
        return refuse(
            "blocks of " + std::to_string(threads) + " threads, it is made for " +
            std::to_string(function->required_threads));
    if (function->static_shared + uint64_t(launch.dynamic_shared) > 227 << 10)
        return refuse(std::to_string(launch.dynamic_shared) + " bytes of shared memory");
    for (auto& table : module.tables) memory.add(reinterpret_cast<uint64_t>(table.content.get()), table.bytes);
    memory.begin_launch(blocks);
    Ordering ordering(memory.last_number());
    std::vector<uint32_t> order(blocks);
    for (uint32_t i = 0; i < blocks; i++) order[i] = i;
    Random random{launch.seed};
    for (uint64_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    Block block(*function, launch, memory, ordering);
    bool done = true;
    for (size_t i = 0; i < order.size() && done; i++) done = block.run(order[i]);
    error = block.error;
    for (auto& table : module.tables) memory.remove(reinterpret_cast<uint64_t>(table.content.get()));
    return done;
}

}  // namespace software_gpu
