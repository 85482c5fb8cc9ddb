#include "ptx_text.h"

#include <map>

#include "ptx_tokens.h"

namespace software_gpu {
namespace {

// Names that are declared between two braces.
struct Scope {
    struct Range {
        uint8_t bytes;
        uint32_t first, count;
    };
    std::map<std::string, RegisterText, std::less<>> names;
    std::map<std::string, Range, std::less<>> ranges;  // %r<8>, by "%r"
};

unsigned bytes_of(std::string_view type) {
    if (type == ".pred") return 1;
    unsigned bits = 0;
    for (char c : type)
        if (c >= '0' && c <= '9') bits = 10 * bits + (c - '0');
    return bits / 8;
}

class Parser {
public:
    Parser(std::string_view text, ModuleText& module) : words(tokens(text)), module(module) {}

    bool run(std::string& message) {
        while (!at_end() && failure.empty()) top_level();
        message = failure;
        return failure.empty();
    }

private:
    std::vector<Token> words;
    ModuleText& module;
    size_t at = 0;
    std::string failure;
    FunctionText* function = nullptr;
    std::vector<Scope> scopes;

    const Token& peek(size_t ahead = 0) const { return words[std::min(at + ahead, words.size() - 1)]; }
    bool at_end() const { return peek().text.empty(); }
    Token next() { return words[at + 1 < words.size() ? at++ : at]; }
    bool take(std::string_view text) { return peek().is(text) && (at++, true); }
    void fail(const std::string& what) {
        if (failure.empty()) failure = "line " + std::to_string(peek().line) + ": " + what;
        at = words.size() - 1;
    }
    void expect(std::string_view text) {
        if (!take(text)) fail("expected '" + std::string(text) + "', found '" + std::string(peek().text) + "'");
    }
    void skip_line(uint32_t line) {
        while (!at_end() && peek().line == line) next();
    }
    uint64_t integer() {
        bool negative = take("-");
        uint64_t value = 0;
        uint8_t float_bytes;
        if (!number(peek().text, value, float_bytes))
            fail("expected a number, found '" + std::string(peek().text) + "'");
        next();
        return negative ? -value : value;
    }

    void top_level() {
        Token word = next();
        if (word.is(".version") || word.is(".target") || word.is(".address_size")) {
            if (word.is(".target")) module.target = peek().text;
            skip_line(word.line);
        } else if (word.is(".file") || word.is(".loc") || word.is(".pragma")) {
            skip_line(word.line);
        } else if (word.is(".section")) {
            while (!at_end() && !peek().is("{")) next();
            while (!at_end() && !take("}")) next();
        } else if (word.is(".visible") || word.is(".weak") || word.is(".common")) {
        } else if (word.is(".entry")) {
            entry();
        } else if (word.is(".extern") || word.is(".global") || word.is(".const") || word.is(".shared")) {
            bool external = word.is(".extern");
            Token space = external ? next() : word;
            VariableText made = variable(space.text, external);
            if (failure.empty()) module.variables.push_back(made);
        } else {
            at--;
            fail("'" + std::string(word.text) + "' is not known at the top of a module");
        }
    }

    // .align 16 .b8 name[8] = {1, 2};
    VariableText variable(std::string_view space, bool external) {
        VariableText made;
        made.space = space;
        made.external = external;
        unsigned element = 1;
        while (peek().starts(".") && !at_end()) {
            Token word = next();
            if (word.is(".align")) made.alignment = unsigned(integer());
            else if (!(element = bytes_of(word.text))) fail("type '" + std::string(word.text) + "'");
        }
        made.alignment = std::max(made.alignment, element);
        made.name = next().text;
        uint64_t count = 1;
        if (take("[")) {
            count = peek().is("]") ? 0 : integer();
            expect("]");
        }
        made.bytes = count * element;
        if (take("=")) {
            bool list = take("{");
            do {
                uint64_t value = integer();
                for (unsigned byte = 0; byte < element; byte++) made.content.push_back(uint8_t(value >> (8 * byte)));
            } while (list && take(","));
            if (list) expect("}");
            made.content.resize(made.bytes);
        }
        expect(";");
        return made;
    }

    void entry() {
        function = &module.functions.emplace_back();
        function->line = peek().line;
        function->name = next().text;
        scopes.assign(1, {});
        if (take("(")) {
            while (failure.empty() && !take(")")) {
                parameter();
                take(",");
            }
        }
        while (!at_end() && !peek().is("{")) {
            Token word = next();
            if (word.is(".reqntid")) {
                function->required_threads = unsigned(integer());
                while (take(",")) function->required_threads *= unsigned(integer());
            } else if (!word.starts(".max") && !word.starts(".minn") && !word.is_number() && !word.is(",")) {
                fail("'" + std::string(word.text) + "' is not known before a function's body");
            }
        }
        expect("{");
        for (int depth = 1; depth > 0 && failure.empty();) {
            if (at_end()) return fail("the function " + function->name + " has no end");
            if (take("{")) {
                depth++;
                scopes.emplace_back();
            } else if (take("}")) {
                depth--;
                if (depth) scopes.pop_back();
            } else {
                statement();
            }
        }
    }

    void parameter() {
        expect(".param");
        unsigned bytes = 0, alignment = 0;
        while (peek().starts(".") && !at_end()) {
            Token word = next();
            if (word.is(".align")) {
                unsigned given = unsigned(integer());
                if (!bytes) alignment = given;  // else of what a pointer points to
            } else if (!bytes) {
                bytes = bytes_of(word.text);
            }
        }
        std::string name(next().text);
        alignment = std::max(alignment, bytes);
        if (take("[")) {
            bytes *= unsigned(integer());
            expect("]");
        }
        if (!bytes) return fail("parameter " + name + " has no size");
        auto& before = function->parameters;
        unsigned offset = before.empty() ? 0 : before.back().offset + before.back().bytes;
        function->parameters.push_back({name, bytes, (offset + alignment - 1) / alignment * alignment});
    }

    void statement() {
        Token word = peek();
        if (word.is(".pragma") || word.is(".loc") || word.is(".file")) return skip_line(word.line);
        if (take(".reg")) return registers();
        if (word.is(".shared") || word.is(".local") || word.is(".global") || word.is(".const")) {
            next();
            VariableText made = variable(word.text, false);
            (word.is(".shared") || word.is(".local") ? function->variables : module.variables).push_back(made);
            return;
        }
        if (take(";")) return;
        StatementText made;
        made.line = word.line;
        if (word.is_word() && peek(1).is(":")) {
            made.label = word.text;
            at += 2;
            function->statements.push_back(made);
            return;
        }
        if (take("@")) made.guard.push_back(operand());
        if (!peek().is_word()) return fail("expected an instruction, found '" + std::string(peek().text) + "'");
        made.opcode = next().text;
        while (failure.empty() && !take(";")) {
            made.operands.push_back(operand());
            if (!take(",") && !peek().is(";")) fail("expected ',' or ';', found '" + std::string(peek().text) + "'");
        }
        function->statements.push_back(std::move(made));
    }

    std::vector<std::string>* registers_of(unsigned bytes) {
        switch (bytes) {
            case 1: return &function->predicates;
            case 2: return &function->registers16;
            case 4: return &function->registers32;
            case 8: return &function->registers64;
        }
        return nullptr;
    }

    void registers() {
        std::string type(next().text);
        auto* names = registers_of(bytes_of(type));
        if (!names || type == ".b8") return fail("registers of type " + type);
        auto bytes = uint8_t(bytes_of(type));
        do {
            std::string name(next().text);
            if (take("<")) {
                auto count = uint32_t(integer());
                expect(">");
                scopes.back().ranges[name] = {bytes, uint32_t(names->size()), count};
                for (uint32_t i = 0; i < count; i++) names->push_back(name + std::to_string(i));
            } else {
                scopes.back().names[name] = {name, bytes, uint32_t(names->size())};
                names->push_back(name);
            }
        } while (take(","));
        expect(";");
    }

    bool find_register(std::string_view name, OperandText& found) {
        size_t digits = name.size();
        while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') digits--;
        uint64_t number_ = 0;
        for (char c : name.substr(digits)) number_ = number_ * 10 + (c - '0');
        for (size_t depth = scopes.size(); depth-- > 0;) {
            auto one = scopes[depth].names.find(name);
            if (one != scopes[depth].names.end()) {
                found.bytes = one->second.bytes;
                found.index = one->second.index;
                return true;
            }
            auto many = scopes[depth].ranges.find(name.substr(0, digits));
            if (digits < name.size() && many != scopes[depth].ranges.end() && number_ < many->second.count) {
                found.bytes = many->second.bytes;
                found.index = many->second.first + uint32_t(number_);
                return true;
            }
        }
        return false;
    }

    OperandText operand() {
        OperandText found = simple();
        if (!take("|")) return found;
        OperandText both;
        both.kind = OperandText::pair;
        both.parts = {found, simple()};
        return both;
    }

    OperandText simple() {
        OperandText made;
        made.kind = OperandText::name;
        if (take("{")) {
            made.kind = OperandText::vector;
            while (failure.empty() && !take("}")) {
                made.parts.push_back(simple());
                take(",");
            }
            return made;
        }
        if (take("[")) {
            made.kind = OperandText::address;
            if (peek().is_word()) made.parts.push_back(simple());
            while (failure.empty() && !take("]")) {
                bool minus = take("-");
                if (!minus) take("+");
                uint64_t value = integer();
                made.value += minus ? -value : value;
            }
            return made;
        }
        made.negated = take("!");
        bool negative = take("-");
        Token word = next();
        made.text = word.text;
        if (word.is_number()) {
            made.kind = OperandText::number;
            if (!number(word.text, made.value, made.bytes)) fail("number '" + made.text + "'");
            if (negative) made.value = -made.value;
        } else if (word.is("_")) {
            made.kind = OperandText::nothing;
        } else if (!word.is_word() || negative) {
            fail("operand '" + made.text + "'");
        } else if (find_register(word.text, made)) {
            made.kind = OperandText::register_;
        }
        return made;
    }
};

}  // namespace

bool parse(std::string_view ptx, ModuleText& module, std::string& error) { return Parser(ptx, module).run(error); }

}  // namespace software_gpu
