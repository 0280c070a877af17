package org.titlecast.opensearch;

import java.io.IOException;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.Set;
import java.util.regex.Pattern;
import org.apache.lucene.search.BooleanClause;
import org.opensearch.common.Nullable;
import org.opensearch.common.xcontent.LoggingDeprecationHandler;
import org.opensearch.common.xcontent.json.JsonXContent;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.core.xcontent.XContentParser;
import org.opensearch.index.query.AbstractQueryBuilder;
import org.opensearch.index.query.BoolQueryBuilder;
import org.opensearch.index.query.BoostingQueryBuilder;
import org.opensearch.index.query.CombinedFieldsQueryBuilder;
import org.opensearch.index.query.ConstantScoreQueryBuilder;
import org.opensearch.index.query.DisMaxQueryBuilder;
import org.opensearch.index.query.MatchBoolPrefixQueryBuilder;
import org.opensearch.index.query.MatchPhrasePrefixQueryBuilder;
import org.opensearch.index.query.MatchPhraseQueryBuilder;
import org.opensearch.index.query.MatchQueryBuilder;
import org.opensearch.index.query.MultiMatchQueryBuilder;
import org.opensearch.index.query.NestedQueryBuilder;
import org.opensearch.index.query.QueryBuilder;
import org.opensearch.index.query.QueryBuilderVisitor;
import org.opensearch.index.query.QueryStringQueryBuilder;
import org.opensearch.index.query.SimpleQueryStringBuilder;
import org.opensearch.index.query.WrapperQueryBuilder;
import org.opensearch.index.query.functionscore.FunctionScoreQueryBuilder;
import org.opensearch.index.query.functionscore.ScriptScoreQueryBuilder;
import org.opensearch.search.builder.SearchSourceBuilder;

/**
 * Finds the words that a person searched for.
 *
 * <p>{@code ext.title_rerank.query_text} says it outright. Without it the query is searched for its
 * full-text parts, so that applications need no change: those that score (not filters, not what
 * must not match), distinct ones joined in the order in which they are written.
 */
final class QueryText {
  /** A wrapper query may hold another one; nobody nests them this deep in earnest. */
  private static final int MAX_WRAPPERS = 8;

  /** {@code *} and its like are a query string, but no text. */
  private static final Pattern WORD = Pattern.compile("[\\p{L}\\p{N}]");

  private final Set<String> texts = new LinkedHashSet<>();
  private final NamedXContentRegistry registry;
  private int wrappers = 0;

  private QueryText(NamedXContentRegistry registry) {
    this.registry = registry;
  }

  /**
   * The query's text, or null where the search has none.
   *
   * @param registry knows the query types, to look into {@code wrapper} queries
   */
  @Nullable
  static String find(SearchSourceBuilder source, NamedXContentRegistry registry) {
    TitleRerankExt ext = TitleRerankExt.in(source);
    if (ext != null && ext.queryText() != null) {
      return ext.queryText();
    }
    QueryText found = new QueryText(registry);
    found.search(source.query());
    return found.texts.isEmpty() ? null : String.join(" ", found.texts);
  }

  private void search(@Nullable QueryBuilder query) {
    switch (query) {
      case null -> {}
      case MatchQueryBuilder match -> add(match.value());
      case MatchPhraseQueryBuilder match -> add(match.value());
      case MatchPhrasePrefixQueryBuilder match -> add(match.value());
      case MatchBoolPrefixQueryBuilder match -> add(match.value());
      case MultiMatchQueryBuilder match -> add(match.value());
      case CombinedFieldsQueryBuilder match -> add(match.queryValue());
      case QueryStringQueryBuilder string -> addSyntax(string.queryString());
      case SimpleQueryStringBuilder string -> addSyntax(string.value());
      case BoolQueryBuilder bool -> {
        searchAll(bool.must());
        searchAll(bool.should());
      }
      case DisMaxQueryBuilder disMax -> searchAll(disMax.innerQueries());
      case ConstantScoreQueryBuilder constant -> search(constant.innerQuery());
      case FunctionScoreQueryBuilder function -> search(function.query());
      case ScriptScoreQueryBuilder script -> search(script.query());
      case BoostingQueryBuilder boosting -> search(boosting.positiveQuery());
      case NestedQueryBuilder nested -> search(nested.query());
      case WrapperQueryBuilder wrapper -> search(unwrap(wrapper));
      default -> searchChildren(query);
    }
  }

  private void searchAll(Collection<QueryBuilder> queries) {
    queries.forEach(this::search);
  }

  /** A compound query of another plugin (such as hybrid search) shows its parts to a visitor. */
  private void searchChildren(QueryBuilder query) {
    query.visit(
        new QueryBuilderVisitor() {
          @Override
          public void accept(QueryBuilder itself) {}

          @Override
          public QueryBuilderVisitor getChildVisitor(BooleanClause.Occur occur) {
            return occur == BooleanClause.Occur.MUST || occur == BooleanClause.Occur.SHOULD
                ? new ChildVisitor()
                : NO_OP_VISITOR;
          }
        });
  }

  /** Takes over at a child; whatever is below it is searched from there, by our own rules. */
  private final class ChildVisitor implements QueryBuilderVisitor {
    @Override
    public void accept(QueryBuilder child) {
      search(child);
    }

    @Override
    public QueryBuilderVisitor getChildVisitor(BooleanClause.Occur occur) {
      return NO_OP_VISITOR;
    }
  }

  @Nullable
  private QueryBuilder unwrap(WrapperQueryBuilder wrapper) {
    if (++wrappers > MAX_WRAPPERS) {
      return null;
    }
    try (XContentParser parser =
        JsonXContent.jsonXContent.createParser(
            registry, LoggingDeprecationHandler.INSTANCE, wrapper.source())) {
      return AbstractQueryBuilder.parseInnerQueryBuilder(parser);
    } catch (IOException | RuntimeException e) {
      return null; // The engine will parse it too, and say what is wrong with it.
    }
  }

  /** Numbers, dates and booleans are exact values, even in a match query. */
  private void add(Object value) {
    if (value instanceof String text && !text.isBlank()) {
      texts.add(text.strip());
    }
  }

  /** Query-string syntax goes as it is: its words are what matters, and its operators are few. */
  private void addSyntax(String text) {
    if (text != null && WORD.matcher(text).find()) {
      add(text);
    }
  }
}
