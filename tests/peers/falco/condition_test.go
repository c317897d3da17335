package falco

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// condition reports whether a rule matches an event; the plugin extracts the fields.
//
// It covers what the published rules use: and, or, not, parentheses, exists, =, !=, in, intersects,
// startswith, contains, lists and macros. See https://falco.org/docs/concepts/rules/conditions.
type condition func(field func(name string) []string) bool

// parser parses conditions. It expands the names of macros and lists.
type parser struct {
	macros map[string]string
	lists  map[string][]string
	tokens []string
}

var token = regexp.MustCompile(`"[^"]*"|'[^']*'|!=|[()=,]|[^\s()=,!"']+`)

func (p *parser) parse(text string) (parsed condition, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("%v in: %s", problem, text)
		}
	}()
	rest := p.tokens
	defer func() { p.tokens = rest }()
	p.tokens = token.FindAllString(text, -1)
	parsed = p.or()
	if len(p.tokens) > 0 {
		panic("unexpected " + p.tokens[0])
	}
	return parsed, nil
}

func (p *parser) or() condition {
	left := p.and()
	for p.accept("or") {
		first, second := left, p.and()
		left = func(field func(string) []string) bool { return first(field) || second(field) }
	}
	return left
}

func (p *parser) and() condition {
	left := p.not()
	for p.accept("and") {
		first, second := left, p.not()
		left = func(field func(string) []string) bool { return first(field) && second(field) }
	}
	return left
}

func (p *parser) not() condition {
	if p.accept("not") {
		inner := p.not()
		return func(field func(string) []string) bool { return !inner(field) }
	}
	if p.accept("(") {
		inner := p.or()
		p.expect(")")
		return inner
	}
	return p.comparison()
}

func (p *parser) comparison() condition {
	name := p.next()
	if macro, found := p.macros[name]; found {
		parsed, err := p.parse(macro)
		if err != nil {
			panic(err)
		}
		return parsed
	}
	if !strings.Contains(name, ".") {
		panic("no macro or field " + name)
	}
	operator := p.next()
	if operator == "exists" {
		return func(field func(string) []string) bool { return len(field(name)) > 0 }
	}
	wanted := p.values()
	any := func(matches func(value, wanted string) bool) condition {
		return func(field func(string) []string) bool {
			return slices.ContainsFunc(field(name), func(value string) bool {
				return slices.ContainsFunc(wanted, func(one string) bool { return matches(value, one) })
			})
		}
	}
	equal := any(func(value, wanted string) bool { return value == wanted })
	switch operator {
	case "=", "intersects":
		return equal
	case "!=":
		return func(field func(string) []string) bool { return !equal(field) }
	case "in": // every value, as Falco does for fields with several values
		return func(field func(string) []string) bool {
			values := field(name)
			return len(values) > 0 && !slices.ContainsFunc(values, func(one string) bool { return !slices.Contains(wanted, one) })
		}
	case "startswith":
		return any(strings.HasPrefix)
	case "contains":
		return any(strings.Contains)
	}
	panic("unknown operator " + operator)
}

func (p *parser) values() []string {
	if !p.accept("(") {
		return p.expand(p.next())
	}
	var values []string
	for !p.accept(")") {
		if !p.accept(",") {
			values = append(values, p.expand(p.next())...)
		}
	}
	return values
}

func (p *parser) expand(value string) []string {
	list, found := p.lists[value]
	if !found {
		return []string{strings.Trim(value, `"'`)}
	}
	var values []string
	for _, one := range list {
		values = append(values, p.expand(one)...)
	}
	return values
}

func (p *parser) accept(text string) bool {
	if len(p.tokens) == 0 || p.tokens[0] != text {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

func (p *parser) expect(text string) {
	if !p.accept(text) {
		panic("expected " + text)
	}
}

func (p *parser) next() string {
	if len(p.tokens) == 0 {
		panic("unexpected end")
	}
	first := p.tokens[0]
	p.tokens = p.tokens[1:]
	return first
}
